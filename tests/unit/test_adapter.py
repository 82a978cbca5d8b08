"""Algebra on adapters, exact on a handful of numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl import adapter as algebra
from capfl.types import Adapter


def make(a: list[float], b: list[float]) -> Adapter:
    return {"m.A": torch.tensor([a]), "m.B": torch.tensor(b).reshape(-1, 1)}


def equal(a: Adapter, b: Adapter) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def mean(*parts: tuple[Adapter, float]) -> Adapter:
    found = algebra.Mean()
    for part, weight in parts:
        found.add(part, weight)
    return found.value()


ONE = make([1.0, 2.0], [3.0, 4.0])
TWO = make([10.0, 20.0], [30.0, 40.0])


@pytest.fixture(autouse=True)
def _nothing_changes_its_arguments():
    yield
    assert equal(ONE, make([1.0, 2.0], [3.0, 4.0]))
    assert equal(TWO, make([10.0, 20.0], [30.0, 40.0]))


def test_sums_and_differences():
    assert equal(algebra.add(ONE, TWO), make([11.0, 22.0], [33.0, 44.0]))
    assert equal(algebra.add(ONE, {"m.B": TWO["m.B"]}), make([1.0, 2.0], [33.0, 44.0]))  # no name: zero
    with pytest.raises(KeyError, match=r"no tensor named 'm\.B'"):
        algebra.add({"m.A": ONE["m.A"]}, TWO)
    assert equal(algebra.subtract(TWO, ONE), make([9.0, 18.0], [27.0, 36.0]))
    assert equal(algebra.subtract({"m.A": TWO["m.A"]}, ONE), {"m.A": torch.tensor([[9.0, 18.0]])})
    with pytest.raises(KeyError):
        algebra.subtract(ONE, {"m.A": TWO["m.A"]})
    assert equal(algebra.scaled(ONE, -2.0), make([-2.0, -4.0], [-6.0, -8.0]))
    for share, expected in ((0, ONE), (0.5, make([5.5, 11.0], [16.5, 22.0])), (1, TWO)):
        assert equal(algebra.between(ONE, TWO, share), expected)


def test_a_copy_is_detached_float32_and_its_own():
    live = {"m.A": torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)}
    copied = algebra.copy({**live, "m.B": ONE["m.B"]})
    assert copied["m.A"].dtype == torch.float32
    assert not copied["m.A"].requires_grad
    copied["m.B"].add_(1)
    with torch.no_grad():
        live["m.A"].add_(1)
    assert copied["m.A"].tolist() == [[1.0, 2.0]]


# -- means ----------------------------------------------------------------------------------------------


def test_a_weighted_mean_by_hand():
    assert equal(mean((ONE, 3), (TWO, 1)), make([3.25, 6.5], [9.75, 13.0]))
    assert equal(mean(({"m.A": ONE["m.A"]}, 1.0), (TWO, 3.0)), make([7.75, 15.5], [22.5, 30.0]))  # no name: zero
    alone = mean((ONE, 1))
    alone["m.A"].add_(1)  # ONE stays as it is: checked after each test
    assert {t.dtype for t in alone.values()} == {torch.float32}


pairs = st.lists(st.floats(-1000, 1000, width=32), min_size=2, max_size=2)


@settings(max_examples=50)
@given(st.lists(st.tuples(pairs, st.floats(1e-3, 1e9)), min_size=1, max_size=6))
def test_a_mean_lies_between_its_parts_and_that_of_one_is_that_one(parts):
    found = mean(*((make(values, values), weight) for values, weight in parts))["m.A"][0]
    columns = torch.tensor([values for values, _ in parts])
    slack = 1e-4 if len(parts) > 1 else 0
    assert (found >= columns.min(0).values - slack).all()
    assert (found <= columns.max(0).values + slack).all()


@pytest.mark.parametrize("parts", [[], [(ONE, 0)], [(ONE, -1.0), (TWO, 2.0)], [(ONE, float("nan"))]])
def test_means_of_nothing_or_with_weights_that_are_not_positive(parts):
    with pytest.raises(ValueError, match="cannot average"):
        mean(*parts)


# -- looking at adapters ---------------------------------------------------------------------------------


def test_factors_are_complete_pairs_in_order():
    adapter = {
        "z.q.A": torch.zeros(3, 5), "z.q.B": torch.zeros(4, 3),
        "only.A": torch.zeros(1, 5), "b.B": torch.zeros(4, 2), "b.A": torch.zeros(2, 5), "lone.B": torch.zeros(4, 9),
    }  # fmt: skip
    assert [(m, tuple(a.shape), tuple(b.shape)) for m, a, b in algebra.factors(adapter)] == [
        ("z.q", (3, 5), (4, 3)),
        ("b", (2, 5), (4, 2)),
    ]
    assert algebra.ranks(adapter) == {"z.q": 3, "b": 2}


def test_numbers_of_elements_and_of_ranks_module_by_module():
    adapter = {"a.A": torch.zeros(2, 3), "a.B": torch.zeros(4, 2), "b.A": torch.zeros(1, 3), "b.B": torch.zeros(4, 1)}
    assert (algebra.size(adapter), algebra.size({})) == (21, 0)
    assert algebra.living(torch.tensor([True, False, True]), adapter) == [1, 1]
    assert algebra.mean_by_module(torch.tensor([0.5, 2.0, 1.23456]), adapter) == [1.25, 1.235]


# -- ranks that add nothing -------------------------------------------------------------------------------


def test_pruned_drops_a_rank_whose_column_of_b_or_row_of_a_is_zero():
    down = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0], [5.0, 6.0]])
    up = torch.tensor([[1.0, 0.0, 2.0, 3.0]])
    got = algebra.pruned({"m.A": down, "m.B": up})
    assert equal(got, {"m.A": torch.tensor([[1.0, 0.0], [5.0, 6.0]]), "m.B": torch.tensor([[1.0, 3.0]])})
    back = algebra.padded(got, {"m.A": down, "m.B": up})
    assert back["m.A"].tolist() == [[1, 0], [5, 6], [0, 0], [0, 0]]
    assert back["m.B"].tolist() == [[1, 3, 0, 0]]
    got = algebra.pruned({"m.A": torch.ones(3, 2), "m.B": torch.zeros(4, 3)})
    assert (got["m.A"].shape, got["m.B"].shape) == ((1, 2), (4, 1))  # a module keeps one


def test_padded_refuses_what_does_not_fit():
    template = make([0.0, 0.0], [0.0])
    for wrong in ({"m.A": torch.ones(1, 3), "m.B": torch.ones(1, 1)}, {"m.A": torch.ones(1, 2)}):
        with pytest.raises(ValueError, match="does not fit"):
            algebra.padded(wrong, template)
