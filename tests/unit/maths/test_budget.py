"""Budgets: by hand, and for any groups exact, capped, in proportion and monotone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.maths.budget import allocate

groups = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 50)), min_size=1, max_size=12).filter(
    lambda pairs: any(importance for importance, _ in pairs)
)


def counts(importance, sizes, budget: int) -> list[int]:
    got = allocate(np.array(importance, float), np.array(sizes, np.int64), budget)
    assert got.dtype == np.int64
    return got.tolist()


@pytest.mark.parametrize(
    ("importance", "sizes", "budget", "expected"),
    [
        ([3, 1], [10, 10], 8, [6, 2]),
        ([1, 1], [30, 10], 20, [15, 5]),  # equal densities, not equal counts
        ([2, 1], [10, 40], 30, [10, 20]),  # 2 t * 10 + t * 40 = 30: t = 1/2, and the first is just full
        ([3, 2, 1], [10, 10, 10], 24, [10, 9, 5]),  # 12 is 2 too many: 14 over 2:1 is 9.33, 4.67
        ([9, 4, 1], [10, 10, 10], 23, [10, 10, 3]),  # the second is filled by what the first passes on
        ([1, 0, 1], [10, 10, 10], 15, [8, 0, 7]),
        ([1, 2], [10, 10], 0, [0, 0]),
        ([1, 2], [10, 7], 99, [10, 7]),
        ([1, 0], [10, 7], 99, [10, 0]),  # a group of no importance gets nothing, whatever the budget
        ([1, 5], [10, 0], 5, [5, 0]),
        ([0, 5], [10, 0], 5, [0, 0]),
        ([], [], 5, []),
        # remainders
        ([1, 1, 1], [9, 9, 9], 11, [4, 4, 3]),
        ([1, 3], [9, 9], 2, [1, 1]),  # 0.5 and 1.5: a tie of remainders, though not of importances
        ([0.1, 0.3], [9, 9], 2, [1, 1]),  # the same where floating point has no tie
        ([5, 3, 1], [90, 90, 90], 4, [2, 1, 1]),  # 2.22, 1.33, 0.44
        ([1e308, 1e308, 5e307], [10, 10, 10], 10, [4, 4, 2]),
        # rounding fills one too many: the share per importance is 0 then
        ([0, 0, 1.0, 1.60183976e16, 1.60183976e16, 1.56545172e17], [5] * 6, 15, [0, 0, 0, 5, 5, 5]),
    ],
)
def test_by_hand(importance, sizes, budget, expected):
    assert counts(importance, sizes, budget) == expected


@pytest.mark.parametrize("budget", [9_999, 10_001, 3])
def test_shares_next_to_whole_numbers(budget):
    """Each is a ten-thousandth above or below one, or nearly nothing."""
    got = counts([1] * 10_000, [2] * 10_000, budget)
    assert sum(got) == budget
    assert got == sorted(got, reverse=True)
    assert got[0] - got[-1] <= 1


@settings(max_examples=60)
@given(groups, st.integers(0, 700))
def test_exact_capped_and_in_proportion(cases, budget):
    importance, sizes = [i for i, _ in cases], [s for _, s in cases]
    got = counts(importance, sizes, budget)
    assert sum(got) == min(budget, sum(s for s, w in zip(sizes, importance, strict=True) if w))
    assert all(0 <= n <= (s if w else 0) for n, s, w in zip(got, sizes, importance, strict=True))
    # one density per importance for all groups that get something and are not full: within a rounding
    rows = [(n, w * s, s) for n, w, s in zip(got, importance, sizes, strict=True) if w and s]
    low = max([(n - 1) / mass for n, mass, _ in rows], default=0)
    high = min([(n + 1) / mass for n, mass, s in rows if n < s], default=np.inf)
    assert low < high * (1 + 1e-6)


@settings(max_examples=60)
@given(groups, st.integers(0, 700), st.integers(0, 11), st.integers(1, 500), st.integers(-30, 30))
def test_what_importance_does(cases, budget, which, more, power):
    importance, sizes = [i for i, _ in cases], [s for _, s in cases]
    got, which = counts(importance, sizes, budget), which % len(cases)
    assert counts([w * 2.0**power for w in importance], sizes, budget) == got  # its unit does not matter
    raised = [w + more * (i == which) for i, w in enumerate(importance)]
    assert counts(raised, sizes, budget)[which] >= got[which]  # to become more important never costs
    equal = counts(importance, [50] * len(importance), budget)  # of one size, the more important have no fewer
    order = np.argsort(importance, kind="stable")
    assert all(equal[a] <= equal[b] + (importance[a] == importance[b]) for a, b in pairwise(order))


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
