"""A budget of elements, shared over groups by importance, to the last element.

Water-filling under caps as in Boyd & Vandenberghe, Convex Optimization, 2004, example 5.2; rounding by largest
remainders (Hamilton's method: Balinski & Young, Fair Representation, 1982).

Both sides of a message share out a budget on their own, so counts are the same on every machine: sums of floats are
one by one (cumsum), where ``sum`` adds in an order that depends on the processor, and sorts are stable.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BITS = 24  # of fraction: shares that are equal on paper are equal here, and a tie is a tie


def allocate(importance: Doubles, sizes: Ints, budget: int) -> Ints:
    """How many of its ``sizes`` elements each group gets, (n,) int64, with a density in proportion to ``importance``.

    Counts sum to min(budget, size of all groups of some importance) exactly. A group that is full passes the rest of
    its share on, in proportion; what rounding leaves goes to the largest remainders, the first among equals. A group of
    no importance gets nothing.

    Args:
        importance: (n,), finite, not negative; one at least is not zero, unless n is 0.
        sizes: (n,), not negative.
        budget: elements to share out.
    """
    counts = np.zeros(len(sizes), np.int64)
    taken = np.flatnonzero((importance > 0) & (sizes > 0))
    if len(taken):
        weights, own = importance[taken] / importance.max(), sizes[taken]
        counts[taken] = _rounded(_filled(weights, own, budget), min(budget, int(own.sum())))
    return counts


def _filled(weights: Doubles, sizes: Ints, budget: int) -> Doubles:
    """Real shares: sizes * min(1, t * weights) with the t that makes them sum to the budget."""
    if budget >= sizes.sum():
        return sizes.astype(np.float64)
    order = np.argsort(-weights, kind="stable")
    sorted_sizes, mass = sizes[order], (sizes * weights)[order]
    # t if just the first 0, 1, ... groups are full; the first of these that fills no further group is right
    left = budget - (np.cumsum(sorted_sizes) - sorted_sizes)
    t = left / np.cumsum(mass[::-1])[::-1]
    n_full = int(np.argmax(t * weights[order] <= 1))
    shares: Doubles = sizes * np.minimum(1.0, t[n_full] * weights)
    shares[order[:n_full]] = sorted_sizes[:n_full]  # not left to t, which is 0 where rounding lets one too many be full
    return shares


def _rounded(shares: Doubles, total: int) -> Ints:
    """Whole numbers next to the shares that sum to ``total``."""
    fixed = np.rint(np.ldexp(shares, _BITS)).astype(np.int64)
    counts: Ints = fixed >> _BITS
    remainders = fixed - (counts << _BITS)
    counts[np.argsort(-remainders, kind="stable")[: total - int(counts.sum())]] += 1
    return counts
