"""Budgets: by hand, and for any groups exact, capped, in proportion and monotone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from capfl.maths.budget import allocate

groups = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 50)), min_size=1, max_size=12)


def counts(importance, sizes, budget: int, floor: float = 0.0) -> list[int]:
    got = allocate(np.array(importance, float), np.array(sizes, np.int64), budget, floor)
    assert got.dtype == np.int64
    return got.tolist()


def split(cases) -> tuple[list[int], list[int]]:
    return [i for i, _ in cases], [s for _, s in cases]


# -- by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importance", "sizes", "budget", "expected"),
    [
        ([1, 1], [10, 10], 10, [5, 5]),
        ([3, 1], [10, 10], 8, [6, 2]),
        ([1, 1], [30, 10], 20, [15, 5]),  # equal densities, not equal counts
        ([2, 1], [10, 40], 30, [10, 20]),  # 2 t * 10 + t * 40 = 30: t = 1/2, and the first is just full
        ([3, 2, 1], [10, 10, 10], 18, [9, 6, 3]),
        ([3, 2, 1], [10, 10, 10], 24, [10, 9, 5]),  # 12 is 2 too many: 14 over 2:1 is 9.33, 4.67
        ([9, 4, 1], [10, 10, 10], 23, [10, 10, 3]),  # the second is filled by what the first passes on
        ([1, 0, 1], [10, 10, 10], 15, [8, 0, 7]),
        ([0, 0], [10, 10], 10, [5, 5]),
        ([1, 2], [10, 10], 0, [0, 0]),
        ([1, 2], [10, 7], 17, [10, 7]),
        ([1, 2], [10, 7], 99, [10, 7]),
        ([1, 0], [10, 7], 99, [10, 0]),  # a group of no importance is dropped, whatever the budget
        ([1, 5], [10, 0], 5, [5, 0]),
        ([5, 1], [10, 0], 5, [5, 0]),
        ([0, 5], [10, 0], 5, [0, 0]),  # nothing is left of what survives
        ([], [], 5, []),
    ],
)
def test_by_hand(importance, sizes, budget, expected):
    assert counts(importance, sizes, budget) == expected


@pytest.mark.parametrize(
    ("importance", "sizes", "budget", "expected"),
    [
        ([1, 1, 1], [9, 9, 9], 10, [4, 3, 3]),
        ([1, 1, 1], [9, 9, 9], 11, [4, 4, 3]),
        ([1, 3], [9, 9], 2, [1, 1]),  # 0.5 and 1.5: a tie of remainders, though not of importances
        ([0.1, 0.3], [9, 9], 2, [1, 1]),  # the same where floating point has no tie
        ([5, 3, 1], [90, 90, 90], 4, [2, 1, 1]),  # 2.22, 1.33, 0.44
        ([0.7, 0.7, 0.7], [9, 9, 9], 9, [3, 3, 3]),
    ],
)
def test_remainders(importance, sizes, budget, expected):
    assert counts(importance, sizes, budget) == expected


@pytest.mark.parametrize(
    ("importance", "floor", "expected"),
    [
        ([4, 3, 1], 0.0, [4, 3, 1]),
        ([4, 3, 1], 0.375, [4, 3, 1]),  # 1 is 3/8 of the mean, just what it takes
        ([4, 3, 1], 0.38, [5, 3, 0]),  # 4.57, 3.43
        ([4, 3, 1], 1.2, [8, 0, 0]),
        ([4, 3, 1], 99.0, [8, 0, 0]),  # the most important always survives
        ([3, 4, 4], 99.0, [0, 8, 0]),
        ([0.1, 0.1, 0.1], 1.0, [3, 3, 2]),  # the mean of equals is no more than they are
        ([0, 0, 0], 1.0, [3, 3, 2]),
        ([0, 0, 0], 1.1, [8, 0, 0]),
    ],
)
def test_floors(importance, floor, expected):
    assert counts(importance, [9, 9, 9], 8, floor) == expected


@pytest.mark.parametrize("budget", [9_999, 10_000, 10_001, 3, 19_999])
def test_shares_next_to_whole_numbers(budget):
    """Each is a ten-thousandth above or below one, or nearly nothing, or nearly full."""
    got = counts([1] * 10_000, [2] * 10_000, budget)
    assert sum(got) == budget
    assert got == sorted(got, reverse=True)
    assert got[0] - got[-1] <= 1


def test_numbers_as_large_and_as_small_as_there_are():
    assert counts([1e308, 1e308, 5e307], [10, 10, 10], 10) == [4, 4, 2]
    assert counts([1e-320, 1e-320], [10, 10], 5) == [3, 2]
    assert counts([1e300, 1e-300], [10, 10], 15) == [10, 5]
    assert counts([1e300, 1e-310, 1e-310], [10, 10, 10], 16) == [10, 3, 3]


# -- for any groups ----------------------------------------------------------------------------------------


@given(groups, st.integers(0, 700), st.sampled_from([0.0, 0.3, 1.0, 2.5]))
def test_exact_capped_and_in_proportion(cases, budget, floor):
    importance, sizes = split(cases)
    got = counts(importance, sizes, budget, floor)
    weights = importance if any(importance) else [1] * len(importance)
    mean = sum(weights) / len(weights)
    alive = [w > 0 and w >= floor * mean for w in weights]
    alive[weights.index(max(weights))] = True
    assert sum(got) == min(budget, sum(s for s, a in zip(sizes, alive, strict=True) if a))
    assert all(0 <= n <= (s if a else 0) for n, s, a in zip(got, sizes, alive, strict=True))
    # one density per importance for all groups that are neither dropped nor full: within a rounding
    rows = [(n, w * s, s) for n, w, s, a in zip(got, weights, sizes, alive, strict=True) if a and s]
    low = max([(n - 1) / mass for n, mass, _ in rows], default=0)
    high = min([(n + 1) / mass for n, mass, s in rows if n < s], default=np.inf)
    assert low < high * (1 + 1e-6)


@given(groups, st.integers(0, 700))
def test_more_important_is_never_fewer(cases, budget):
    """Among groups of one size."""
    importance, _ = split(cases)
    got = counts(importance, [50] * len(importance), budget)
    order = np.argsort(importance, kind="stable")
    assert all(got[a] <= got[b] + (importance[a] == importance[b]) for a, b in pairwise(order))


@given(groups, st.integers(0, 700), st.integers(0, 11), st.integers(1, 500), st.sampled_from([0.0, 0.7]))
def test_to_become_more_important_never_costs(cases, budget, which, more, floor):
    importance, sizes = split(cases)
    which %= len(cases)
    assume(any(importance))
    raised = [w + more * (i == which) for i, w in enumerate(importance)]
    assert counts(raised, sizes, budget, floor)[which] >= counts(importance, sizes, budget, floor)[which]


@given(groups, st.integers(0, 700), st.sampled_from([0.0, 0.6]), st.integers(-30, 30))
def test_the_unit_of_importance_does_not_matter(cases, budget, floor, power):
    importance, sizes = split(cases)
    scaled = [w * 2.0**power for w in importance]
    assert counts(scaled, sizes, budget, floor) == counts(importance, sizes, budget, floor)


@given(groups, st.integers(0, 700), st.randoms())
def test_the_order_of_groups_decides_ties_alone(cases, budget, random):
    order = list(range(len(cases)))
    random.shuffle(order)
    straight = counts(*split(cases), budget)
    shuffled = counts(*split([cases[i] for i in order]), budget)
    assert sum(straight) == sum(shuffled)
    assert all(abs(shuffled[at] - straight[i]) <= 1 for at, i in enumerate(order))


def test_thousands_of_groups():
    rng = np.random.default_rng(0)
    importance, sizes = rng.lognormal(0, 3, 50_000), rng.integers(1, 20_000, 50_000)
    arguments = importance.copy(), sizes.copy()
    got = allocate(importance, sizes, int(sizes.sum() * 0.15))
    assert got.sum() == int(sizes.sum() * 0.15)
    assert (got <= sizes).all()
    assert (got == sizes).any()
    assert np.array_equal(importance, arguments[0])
    assert np.array_equal(sizes, arguments[1])


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importance", "sizes", "budget", "floor", "message"),
    [
        ([1, -1], [1, 1], 1, 0.0, "an importance is negative"),
        ([1, np.nan], [1, 1], 1, 0.0, "not finite"),
        ([1, np.inf], [1, 1], 1, 0.0, "not finite"),
        ([1, 1], [1], 1, 0.0, "shape"),
        ([[1, 1]], [[1, 1]], 1, 0.0, "shape"),
        ([1, 1], [1, -1], 1, 0.0, "a size"),
        ([1, 1], [1, 1], -1, 0.0, "budget -1"),
        ([1, 1], [1, 1], 1, -0.5, "floor -0.5"),
        ([1, 1], [1, 1], 1, np.nan, "floor nan"),
    ],
)
def test_what_cannot_be_shared_out(importance, sizes, budget, floor, message):
    with pytest.raises(ValueError, match=message):
        allocate(np.array(importance, float), np.array(sizes), budget, floor)


def test_importances_so_far_apart_that_rounding_fills_one_too_many():
    importance = np.array([0.0, 0.0, 1.0, 1.60183976e16, 1.60183976e16, 1.56545172e17])
    sizes = np.array([5, 5, 5, 5, 5, 5])
    assert allocate(importance, sizes, 15).tolist() == [0, 0, 0, 5, 5, 5]
    assert allocate(importance, sizes, 16).tolist() == [0, 0, 1, 5, 5, 5]
