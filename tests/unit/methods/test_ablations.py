"""The ablations of benchmarks/ablations.py: all can be built and played, and differ from CA-PFL in one part."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from capfl.compare.rows import load_rows
from capfl.compare.spec import make_plan
from capfl.config.schema import MethodConfig
from capfl.methods import build
from capfl.methods.posterior import PosteriorMemory
from parts import Federation

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ROWS = load_rows(BENCHMARKS / "ablations.py")
WORDS = {"name", "about", "source"}


@pytest.mark.parametrize("name", ROWS)
def test_an_ablation_has_one_other_part_and_can_be_played(name: str) -> None:
    plain = build(MethodConfig(name="ca-pfl"))
    assert ROWS[name].name == name
    differ = [f.name for f in fields(plain) if getattr(plain, f.name) != getattr(ROWS[name], f.name)]
    assert len(set(differ) - WORDS) == 1
    played, base = Federation(ROWS[name], "default"), Federation(plain, "default")
    for federation in (played, base):
        federation.rounds(2)
    kept, of_plain = played.memory("a").ranks, base.memory("a").ranks
    if name == "random-ranks":
        assert isinstance(kept, PosteriorMemory) and isinstance(of_plain, PosteriorMemory)  # noqa: PT018
        assert not torch.equal(kept.posterior.beta, of_plain.posterior.beta)
    if name == "no-features":
        assert isinstance(kept, PosteriorMemory) and kept.modulator is not None  # noqa: PT018
        assert kept.modulator.down.shape == (1, 1)


def test_the_spec_names_them_all() -> None:
    plan = make_plan(BENCHMARKS / "ablations.toml")
    assert {config.method.name for config in [cell.config for cell in plan.cells]} == {"ca-pfl", *ROWS}
