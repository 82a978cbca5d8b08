"""Messages damaged, spliced and made up: they decode to something that fits, or raise WireError, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_forged_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in every run; ``benchmarks/fuzz_wire.py`` tries a million."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import fuzz_wire

    found = fuzz_wire.chunk(seed=0, number=0, n_messages=3000)
    assert not found.violations, found.violations[0]
    refused = {module for _, module in found.refused}
    assert {"header", "sections", "records", "positions", "rice", "scores", "secure"} <= refused
    assert sum(found.decoded.values()) > 100
