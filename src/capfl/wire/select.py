"""Which elements are sent: exactly density * P of them where the largest are, about as many where chance decides.

Where ranks have an importance it is exactly as many either way: each rank has a number of its own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from capfl.rng import stream
from capfl.wire.layout import Bools, Floats, Ints, Layout
from capfl.wire.ranks import Ranks, paired

_CIRCLE = 2**32
_GOLDEN = 2654435769  # the golden section of the circle


def budget(density: float, layout: Layout) -> Ints:
    """How many elements each tensor may send: density * size, rounded so that they sum to round(density * P)."""
    exact = density * layout.sizes
    counts: Ints = np.floor(exact).astype(np.int64)
    missing = round(density * layout.size) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def top_of_each(flat: Floats, density: float, layout: Layout) -> Ints:
    """Positions of the largest magnitudes of every tensor, ascending."""
    kept = [
        start + _top(np.abs(flat[start : start + size]), int(count))
        for start, size, count in zip(layout.starts, layout.sizes, budget(density, layout), strict=True)
    ]
    return np.concatenate(kept) if kept else np.zeros(0, np.int64)


@lru_cache(maxsize=2)  # all messages of a round have the same
def drawn(round_: int, density: float, layout: Layout, whole: Layout, seed: int) -> Ints:
    """Positions that follow from the run's seed and the round, so they need not be sent.

    Each element of the ``whole`` adapter has a random place on a circle, and is there while a window as wide as the
    density, which moves on by its own width every round, lies over that place: with probability ``density``, and every
    1 / density rounds. All clients of a round have the same mask, so their mean is of all of them wherever it is of
    any, and the server answers with the same elements.
    """
    place = _places(whole, seed)[_within(layout, whole)]
    width = min(_CIRCLE - 1, round(density * _CIRCLE))
    kept: Ints = np.flatnonzero(place - np.uint32(round_ * width % _CIRCLE) < np.uint32(width))
    kept.setflags(write=False)
    return kept


def top_of_ranks(flat: Floats, counts: Ints, ranks: Ranks) -> Ints:
    """Positions of the ``counts`` (n,) largest magnitudes of every rank, A and B together, ascending."""
    order = np.argsort(ranks.owner, kind="stable")
    starts = np.cumsum(ranks.sizes) - ranks.sizes
    kept = [
        (members := order[start : start + size])[_top(np.abs(flat[members]), int(count))]
        for start, size, count in zip(starts, ranks.sizes, counts, strict=True)
        if count
    ]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)


def windows(round_: int, counts: Ints, layout: Layout, whole: Layout, seed: int) -> Ints:
    """Positions of ``counts`` (n,) elements of every rank that follow from the run's seed and the round, ascending.

    A rank's elements stand in the order of their random places, and a window of as many as it may send moves over
    them, round by round, in steps of the golden section: each comes up evenly often, however wide the window is. A
    round's windows begin at the same place, so one client has whatever another has that sends less of the rank.
    """
    sizes, order = Ranks.of(layout, whole).sizes, _ordered(layout, whole, seed)
    start = (round_ * _GOLDEN % _CIRCLE) * sizes >> 32
    beyond = np.maximum(0, start + counts - sizes)  # what of the window is at the beginning again
    within = counts - beyond
    runs = np.stack([beyond, start - beyond, within, sizes - start - within], axis=1)  # in, out, in, out of it
    there = np.zeros(layout.size, np.bool_)
    there[order] = np.repeat(np.tile(np.array([True, False]), 2 * len(sizes)), runs.reshape(-1))
    return np.flatnonzero(there)


@lru_cache(maxsize=4)
def _ordered(layout: Layout, whole: Layout, seed: int) -> Ints:
    """Positions (size,) rank by rank, and by place within a rank; of equals the first comes first.

    The order of a part is taken from that of all pairs: clients may leave out different tensors, and one sort serves
    all of them.
    """
    pairs = paired(whole)
    if layout == pairs:
        order = np.lexsort((_places(whole, seed)[_within(pairs, whole)], Ranks.of(pairs, whole).owner))  # stable
    else:
        sent, of_all = _within(layout, pairs), _ordered(pairs, whole, seed)
        order = (np.cumsum(sent) - 1)[of_all[sent[of_all]]]
    order.setflags(write=False)
    return order


@lru_cache(maxsize=2)
def _places(whole: Layout, seed: int) -> npt.NDArray[np.uint32]:
    """The place of each element of the whole adapter on the circle, (size,)."""
    places = stream(seed, "mask").integers(0, _CIRCLE, whole.size, np.uint32)
    places.setflags(write=False)
    return places


def _within(layout: Layout, outer: Layout) -> Bools:
    """Which elements of ``outer``, (size,), are those of ``layout``, which has some of its tensors."""
    names = {name for name, _ in layout.shapes}
    return np.repeat(np.array([name in names for name, _ in outer.shapes], np.bool_), outer.sizes)


def _top(magnitude: Floats, count: int) -> Ints:
    """Positions of the ``count`` largest, those that come first among equals; zeros are never taken."""
    if count >= len(magnitude):
        return np.flatnonzero(magnitude)
    if count == 0:
        return np.zeros(0, np.int64)
    least = np.partition(magnitude, len(magnitude) - count)[len(magnitude) - count]
    taken = magnitude > least
    if least > 0:
        taken[np.flatnonzero(magnitude == least)[: count - int(taken.sum())]] = True
    found: Ints = np.flatnonzero(taken)
    return found
