"""Intervals of a comparison, by numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.compare.statistics import Interval, bootstrap, clearly_worse


@pytest.mark.parametrize(
    ("differences", "mean", "low", "high"),
    [
        ([np.full(3, 0.25), np.full(5, 0.25)], 0.25, 0.25, 0.25),  # equal differences leave no doubt
        ([np.array([0.0, 1.0])], 0.5, 0.0, 1.0),  # two draws of one seed's clients: 0, 1/2, 1 by 1/4, 1/2, 1/4
        ([np.ones(40), -np.ones(40)], 0.0, -1.0, 1.0),  # all doubt is between the seeds
        ([np.ones(1), np.zeros(1)], 0.5, 0.0, 1.0),
    ],
)
def test_clients_and_seeds_are_drawn(differences: list, mean: float, low: float, high: float) -> None:
    assert bootstrap(differences) == bootstrap(differences) == Interval(mean, low, high)


def test_seeds_weigh_the_same_however_many_clients_they_have() -> None:
    assert bootstrap([np.array([1.0]), np.zeros(9)]).mean == 0.5
    for nothing in ([], [np.array([])]):
        with pytest.raises(ValueError, match="at least one seed"):
            bootstrap(nothing)


@pytest.mark.parametrize(
    ("low", "high", "crosses"), [(-3, -1, False), (-1, 1, True), (1, 3, False), (0, 1, True), (1e-17, 1, True)]
)
def test_an_interval_crosses_zero_if_zero_is_in_it(low: float, high: float, crosses: bool) -> None:
    assert Interval((low + high) / 2, low, high).crosses_zero is crosses


@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=5), min_size=1, max_size=3), st.floats(-2, 2))
def test_a_shift_shifts_the_interval(values: list[list[float]], by: float) -> None:
    plain = bootstrap([np.array(own) for own in values], draws=200)
    moved = bootstrap([np.array(own) + by for own in values], draws=200)
    assert (moved.mean, moved.low, moved.high) == pytest.approx((plain.mean + by, plain.low + by, plain.high + by))


@pytest.mark.parametrize(("n_test", "clear"), [(100, False), (400, True)])
def test_clearly_worse_is_beyond_what_the_items_can_tell(n_test: int, clear: bool) -> None:
    # standard error of the difference: 0.07 with 100 items, 0.035 with 400
    assert clearly_worse(0.5, 0.6, n_test) is clear
    assert not clearly_worse(0.6, 0.5, n_test)
