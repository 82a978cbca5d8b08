"""Algebra on adapters, exact on a handful of numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import same
from capfl import adapter as algebra
from capfl.types import Adapter

pairs = st.lists(st.floats(-1000, 1000, width=32), min_size=2, max_size=2)


def make(a: list[float], b: list[float]) -> Adapter:
    return {"m.A": torch.tensor([a]), "m.B": torch.tensor(b).reshape(-1, 1)}


ONE = make([1.0, 2.0], [3.0, 4.0])
TWO = make([10.0, 20.0], [30.0, 40.0])


@pytest.fixture(autouse=True)
def _nothing_changes_its_arguments() -> Iterator[None]:
    yield
    assert same(ONE, make([1.0, 2.0], [3.0, 4.0]))
    assert same(TWO, make([10.0, 20.0], [30.0, 40.0]))


def test_sums_and_differences() -> None:
    assert same(algebra.add(ONE, TWO), make([11.0, 22.0], [33.0, 44.0]))
    assert same(algebra.add(ONE, {"m.B": TWO["m.B"]}), {"m.A": ONE["m.A"], "m.B": torch.tensor([[33.0], [44.0]])})
    assert same(algebra.subtract(TWO, ONE), make([9.0, 18.0], [27.0, 36.0]))
    assert same(algebra.subtract({"m.A": TWO["m.A"]}, ONE), {"m.A": torch.tensor([[9.0, 18.0]])})
    with pytest.raises(KeyError, match=r"no tensor named 'm\.B'"):  # it would be lost
        algebra.add({"m.A": ONE["m.A"]}, TWO)
    with pytest.raises(KeyError):
        algebra.subtract(ONE, {"m.A": TWO["m.A"]})


def test_between_is_exact_at_the_ends() -> None:
    assert same(algebra.between(ONE, TWO, 0.25), make([3.25, 6.5], [9.75, 13.0]))
    assert algebra.between(ONE, TWO, 0) is ONE
    assert algebra.between(ONE, TWO, 1) is TWO


def test_a_copy_is_detached_float32_and_its_own() -> None:
    live = {"m.A": torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)}
    copied = algebra.copy({**live, "m.B": ONE["m.B"]})
    assert copied["m.A"].dtype == torch.float32
    assert not copied["m.A"].requires_grad
    copied["m.B"].add_(1)  # ONE stays as it is: checked after each test


# -- means ----------------------------------------------------------------------------------------------


def test_a_weighted_mean_by_hand() -> None:
    assert same(algebra.weighted_mean([(ONE, 3), (TWO, 1)]), make([3.25, 6.5], [9.75, 13.0]))
    half = algebra.weighted_mean([({"m.A": ONE["m.A"]}, 1.0), (TWO, 3.0)])  # what is not there counts as zero
    assert same(half, make([7.75, 15.5], [22.5, 30.0]))


@given(pairs, pairs, st.floats(1e-3, 1e9))
def test_the_mean_of_one_part_is_that_part_bit_for_bit(a: list[float], b: list[float], weight: float) -> None:
    mean = algebra.weighted_mean([(make(a, b), weight)])
    assert same(mean, make(a, b))
    assert {t.dtype for t in mean.values()} == {torch.float32}


@pytest.mark.parametrize("parts", [[], [(ONE, 0)], [(ONE, -1.0), (TWO, 2.0)], [(ONE, float("nan"))]])
def test_means_of_nothing_or_with_weights_that_are_not_positive(parts: list[tuple[Adapter, float]]) -> None:
    with pytest.raises(ValueError, match="cannot average"):
        algebra.weighted_mean(parts)


# -- looking at adapters ---------------------------------------------------------------------------------


def test_factors_are_complete_pairs_in_order() -> None:
    adapter = {
        "z.q.A": torch.zeros(3, 5), "z.q.B": torch.zeros(4, 3),
        "only.A": torch.zeros(1, 5), "b.B": torch.zeros(4, 2), "b.A": torch.zeros(2, 5), "lone.B": torch.zeros(4, 9),
    }  # fmt: skip
    found = [(m, tuple(a.shape), tuple(b.shape)) for m, a, b in algebra.factors(adapter)]
    assert found == [("z.q", (3, 5), (4, 3)), ("b", (2, 5), (4, 2))]
    assert algebra.ranks(adapter) == {"z.q": 3, "b": 2}


def test_sizes_norms_and_distances() -> None:
    assert (algebra.size(ONE), algebra.size({})) == (4, 0)
    assert algebra.norm(ONE) == 30**0.5
    now = {name: t.clone().requires_grad_() for name, t in ONE.items()}
    distance = algebra.squared_distance(now, TWO)
    assert float(distance.detach()) == 9**2 + 18**2 + 27**2 + 36**2
    distance.backward()
    assert now["m.A"].grad is not None
    assert now["m.A"].grad.tolist() == [[-18.0, -36.0]]
    assert float(algebra.squared_distance({"m.A": ONE["m.A"]}, TWO)) == 9**2 + 18**2  # names of the first


def test_numbers_of_ranks_module_by_module() -> None:
    adapter = {"a.A": torch.ones(2, 3), "a.B": torch.ones(4, 2), "b.A": torch.ones(1, 3), "b.B": torch.ones(4, 1)}
    assert algebra.living(torch.tensor([True, False, True]), adapter) == [1, 1]
    assert algebra.mean_by_module(torch.tensor([0.5, 2.0, 1.23456]), adapter) == [1.25, 1.235]
    without = algebra.without(adapter, torch.tensor([False, True, False]))
    assert without["a.A"].tolist() == [[1.0] * 3, [0.0] * 3]
    assert without["a.B"].tolist() == [[1.0, 0.0]] * 4
    assert without["b.A"] is adapter["b.A"]


# -- ranks that add nothing -------------------------------------------------------------------------------


def test_pruned_drops_a_rank_whose_column_of_b_or_row_of_a_is_zero() -> None:
    down = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [5.0, 6.0]])
    up = torch.tensor([[1.0, 0.0, 2.0, 3.0]])
    got = algebra.pruned({"m.A": down, "m.B": up})
    assert (got["m.A"].tolist(), got["m.B"].tolist()) == ([[1, 2], [5, 6]], [[1, 3]])
    back = algebra.padded(got, {"m.A": down, "m.B": up})
    assert (back["m.A"].tolist(), back["m.B"].tolist()) == ([[1, 2], [5, 6], [0, 0], [0, 0]], [[1, 3, 0, 0]])
    nothing = algebra.pruned({"m.A": torch.ones(3, 2), "m.B": torch.zeros(4, 3)})  # PEFT knows no rank 0
    assert (nothing["m.A"].shape, nothing["m.B"].shape) == ((1, 2), (4, 1))
    for wrong in ({"m.A": torch.ones(1, 3), "m.B": torch.ones(1, 1)}, {"m.A": torch.ones(1, 2)}):
        with pytest.raises(ValueError, match="does not fit"):
            algebra.padded(wrong, make([0.0, 0.0], [0.0]))
