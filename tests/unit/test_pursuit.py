"""The arithmetic of the attack on updates: planted inputs are found, strangers are not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

PLANTED = [3, 40, 41, 77]


@pytest.fixture
def pursuit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return import_module("pursuit")


def planted(rows: int) -> tuple[Tensor, Tensor]:
    """A hundred inputs of 32 numbers, and sums of four of them as a gradient of A has them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(100, 32, generator=generator)
    return inputs, torch.randn(rows, 4, generator=generator) @ inputs[PLANTED]


def test_what_is_in_the_span_is_found_and_a_stranger_is_not(pursuit: ModuleType) -> None:
    inputs, rows = planted(8)
    share = pursuit.outside(rows, inputs)
    assert (share < 1e-3).nonzero().flatten().tolist() == PLANTED
    strangers = torch.ones(100, dtype=torch.bool).index_fill(0, torch.tensor(PLANTED), False)
    assert share[strangers].min() > 0.5
    assert torch.equal(pursuit.outside(torch.zeros(8, 32), inputs), torch.ones(100))  # nothing is in no span


def test_the_span_says_nothing_with_fewer_rows_than_inputs_and_a_pursuit_does(pursuit: ModuleType) -> None:
    inputs, rows = planted(3)
    assert pursuit.outside(rows, inputs)[PLANTED].min() > 0.2
    assert sorted(pursuit.pursue(rows, torch.ones(3, 32), inputs, 4)) == PLANTED


def test_signs_of_some_are_enough_with_many_rows(pursuit: ModuleType) -> None:
    inputs, rows = planted(64)
    sent = (torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    assert sorted(pursuit.pursue(rows.sign() * sent, sent, inputs, 4)) == PLANTED
    assert sorted(pursuit.pursue(rows.sign() * sent, sent, inputs, 3, known=PLANTED[:1])) == PLANTED[1:]
    hidden = torch.where(sent > 0, rows.sign(), 1e3)  # what was not sent is not looked at
    assert sorted(pursuit.pursue(hidden, sent, inputs, 4)) == PLANTED


def test_what_atoms_explain_is_taken_out_of_what_was_seen(pursuit: ModuleType) -> None:
    seen = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    rows, atoms = torch.tensor([[2.0, 4.0, 5.0, 7.0]]), torch.tensor([[1.0, 2.0, 0.0, 9.0]])
    assert torch.allclose(pursuit.left(rows, seen, atoms), torch.tensor([[0.0, 0.0, 5.0, 0.0]]), atol=1e-2)
    assert torch.equal(pursuit.left(rows, seen, atoms[:0]), rows * seen)
    assert pursuit.explained(torch.tensor([[3.0, 4.0]]), torch.ones(1, 2), torch.eye(2)).tolist() == [9.0, 16.0]
