"""The pure parts of the benchmarks: who a newcomer is, intervals, and what the negative control sends."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from capfl.types import Item


@pytest.fixture
def cold_start(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("cold_start")


@pytest.fixture
def public_code(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("public_code")


def test_newcomers_share_no_item(cold_start: ModuleType) -> None:
    items = [Item(f"question {i}", ("a", "b"), fields={"domain": "home"}) for i in range(300)]
    shares = cold_start.drawn(items, 0, 2)
    assert [(len(seen), len(held_back)) for seen, held_back in shares] == [(46, 100), (46, 100)]
    questions = [item.question for seen, held_back in shares for item in [*seen, *held_back]]
    assert len(set(questions)) == len(questions)
    assert cold_start.drawn(items, 0, 2) == shares != cold_start.drawn(items, 1, 2)
    assert [len(held_back) for _, held_back in cold_start.drawn(items[:110], 0, 2)] == [9, 9]  # too few of them


def test_an_interval_knows_that_newcomers_of_a_seed_go_together(cold_start: ModuleType) -> None:
    assert cold_start.bootstrap(np.full(6, 2.5), [0, 0, 1, 1, 2, 2]) == (2.5, 2.5, 2.5)
    apart = np.array([0.0, 0.0, 0.0, 6.0, 6.0, 6.0])
    assert cold_start.bootstrap(apart, [0, 0, 0, 1, 1, 1]) == (3.0, 0.0, 6.0)  # all is between seeds: 0, 3 or 6
    assert cold_start.bootstrap(apart, [0] * 6) == (3.0, 1.0, 5.0)  # all is within: six draws, sd 3 / sqrt(6)


def test_the_control_keeps_the_largest_and_spreads_shares_by_minimum_and_maximum(public_code: ModuleType) -> None:
    rows = torch.tensor([[1.0, -4.0, 2.0, 3.0], [5.0, 0.1, -0.2, 0.3]])
    assert public_code.largest(rows, [0.5, 0.25]).tolist() == [[0.0, -4.0, 0.0, 3.0], [5.0, 0.0, 0.0, 0.0]]
    assert public_code.shares(torch.tensor([2.0, 1.0, 3.0]), 3) == [0.375, 0.25, 0.5]
    close = public_code.shares(torch.tensor([1.0, 1.0 + 1e-6]), 2)  # however close: the defect that it shows
    assert close == [0.25, 0.5]


def test_the_control_gives_all_modules_the_shares_of_two(public_code: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"m.{layer}.{factor}": shape for layer in range(3) for factor, shape in (("A", (4, 64)), ("B", (64, 4)))}
    adapter = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.manual_seed(0)
    kept = public_code.thinned(adapter)
    down = [kept[f"m.{layer}.A"].count_nonzero(dim=1).tolist() for layer in range(3)]
    up = [kept[f"m.{layer}.B"].count_nonzero(dim=0).tolist() for layer in range(3)]
    assert down[0] == down[1] == down[2]
    assert up[0] == up[1] == up[2]
    assert (min(up[0]), max(up[0])) == (16, 32)
    assert all(bool(((t == 0) | (t == adapter[name])).all()) for name, t in kept.items())
