"""Shared by all tests: no network, one thread."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
from hypothesis import settings

settings.register_profile("capfl", deadline=None)  # a test is not wrong because the machine is busy
settings.load_profile("capfl")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch  # here: the process that deals out the tests runs none, and has no need of it

    torch.set_num_threads(1)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"
