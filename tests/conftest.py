"""Shared by all tests: no network, one thread, short fits of CA-PFL's modulators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
from hypothesis import settings

settings.register_profile("capfl", deadline=None)  # a test is not wrong because the machine is busy
settings.load_profile("capfl")


@pytest.fixture(autouse=True, scope="session")
def _quick() -> Iterator[int]:
    """Hundreds of modulators are fitted, and few have to be fitted well. Yields the steps that a run takes."""
    import torch  # here: the process that deals out the tests runs none, and has no need of it

    from capfl.methods import posterior

    torch.set_num_threads(1)
    steps = posterior.FIT_STEPS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(posterior, "FIT_STEPS", 3)
        yield steps


@pytest.fixture
def whole_fits(_quick: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what the modulators learn."""
    monkeypatch.setattr("capfl.methods.posterior.FIT_STEPS", _quick)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"
