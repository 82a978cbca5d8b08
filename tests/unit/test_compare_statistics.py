"""Intervals, budgets and targets of a comparison, by numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.compare.statistics import Interval, Point, accuracy_within, bootstrap, bytes_to, clearly_worse

CURVE = [Point(1, 100.0, 0.2), Point(2, 200.0, 0.5), Point(3, 300.0, 0.4)]


def test_equal_differences_leave_no_doubt() -> None:
    found = bootstrap([np.full(3, 0.25), np.full(5, 0.25)])
    assert found == Interval(0.25, 0.25, 0.25)
    assert not found.crosses_zero


def test_clients_of_one_seed_are_drawn() -> None:
    # means of two draws from {0, 1}: 0, 1/2, 1 with chances 1/4, 1/2, 1/4
    found = bootstrap([np.array([0.0, 1.0])])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_seeds_are_drawn_too() -> None:
    # clients agree within each seed: all doubt is between the seeds, and their mean is -1, 0 or 1
    found = bootstrap([np.ones(40), -np.ones(40)])
    assert (found.mean, found.low, found.high) == (0.0, -1.0, 1.0)
    assert found.crosses_zero


def test_seeds_weigh_the_same_however_many_clients_they_have() -> None:
    assert bootstrap([np.array([1.0]), np.zeros(9)]).mean == 0.5


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
    assert plain.low - 1e-12 <= plain.high


def test_it_is_the_same_twice_and_refuses_nothing() -> None:
    values = [np.array([0.1, -0.2, 0.3]), np.array([0.0, 0.4])]
    assert bootstrap(values) == bootstrap(values)
    for nothing in ([], [np.array([])]):
        with pytest.raises(ValueError, match="at least one seed"):
            bootstrap(nothing)


@pytest.mark.parametrize(("n_test", "clear"), [(100, False), (400, True)])
def test_clearly_worse_is_beyond_what_the_items_can_tell(n_test: int, clear: bool) -> None:
    # standard error of the difference: 0.07 with 100 items, 0.035 with 400
    assert clearly_worse(0.5, 0.6, n_test) is clear
    assert not clearly_worse(0.6, 0.5, n_test)


def test_bytes_to_a_target_are_those_when_it_was_first_reached() -> None:
    assert bytes_to(CURVE, 0.4) == 200.0
    assert bytes_to(CURVE, 0.2) == 100.0
    assert bytes_to(CURVE, 0.6) is None


def test_a_budget_pays_for_the_last_validation_within_it() -> None:
    assert [accuracy_within(CURVE, budget) for budget in (99, 100, 299, 300, 1e9)] == [None, 0.2, 0.5, 0.4, 0.4]
    assert accuracy_within([], 100) is None
