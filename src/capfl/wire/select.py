"""Which elements are sent: the largest of each tensor or rank, or those on which chance decides."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from capfl.rng import stream
from capfl.wire.budget import Budget
from capfl.wire.layout import Bools, Floats, Ints, Layout

_CIRCLE = 2**32
_GOLDEN = 2654435769  # the golden section of the circle


def largest(flat: Floats, budget: Budget) -> Ints:
    """Positions of the largest magnitudes of every group, as many as its budget, ascending. Zeros are never taken."""
    order = np.argsort(budget.owner, kind="stable")
    starts = np.cumsum(budget.sizes) - budget.sizes
    there = np.zeros(len(flat), np.bool_)
    for start, size, count in zip(starts, budget.sizes, budget.counts, strict=True):
        members = order[start : start + size]
        there[members[_top(np.abs(flat[members]), int(count))]] = True
    return np.flatnonzero(there)


def drawn(number: int, density: float, layout: Layout, whole: Layout, seed: int) -> Ints:
    """Positions that follow from the run's seed and the number of the version, so they need not be sent.

    Each element of the ``whole`` adapter has a random place on a circle, and is there while a window as wide as the
    density, which moves on by its own width from version to version, lies over that place: with probability
    ``density``, and every 1 / density versions. All clients of a turn have the same mask, so their mean is of all of
    them wherever it is of any, and the server answers with the same elements.
    """
    place = _places(whole, seed)[_within(layout, whole)]
    width = min(_CIRCLE - 1, round(density * _CIRCLE))
    return np.flatnonzero(place - np.uint32(number * width % _CIRCLE) < np.uint32(width))


def windows(number: int, budget: Budget, layout: Layout, whole: Layout, seed: int) -> Ints:
    """Positions of as many elements of every rank as its budget that follow from the seed and the version's number.

    A rank's elements stand in the order of their random places, and a window of as many as it may send moves over
    them, version by version, in steps of the golden section: each comes up evenly often, however wide the window is. A
    version's windows begin at the same place, so one client has whatever another has that sends less of the rank.
    """
    sent, of_all = _within(layout, whole), _by_place(whole, seed)
    order = (np.cumsum(sent) - 1)[of_all[sent[of_all]]]
    sizes, counts = budget.sizes, budget.counts
    start = (number * _GOLDEN % _CIRCLE) * sizes >> 32
    beyond = np.maximum(0, start + counts - sizes)  # what of the window is at the beginning again
    within = counts - beyond
    runs = np.stack([beyond, start - beyond, within, sizes - start - within], axis=1)  # in, out, in, out of it
    there = np.zeros(layout.size, np.bool_)
    there[order] = np.repeat(np.tile(np.array([True, False]), 2 * len(sizes)), runs.reshape(-1))
    return np.flatnonzero(there)


@lru_cache(maxsize=2)  # a server decodes as many updates as there are clients: one draw and one sort serve all
def _by_place(whole: Layout, seed: int) -> Ints:
    """Positions (size,) of the whole adapter rank by rank, and by place within a rank; of equals the first first."""
    order = np.lexsort((_places(whole, seed), whole.owners(whole)))  # stable
    order.setflags(write=False)
    return order


@lru_cache(maxsize=2)
def _places(whole: Layout, seed: int) -> npt.NDArray[np.uint32]:
    """The place of each element of the whole adapter on the circle, (size,)."""
    places = stream(seed, "mask").integers(0, _CIRCLE, whole.size, np.uint32)
    places.setflags(write=False)
    return places


def _within(layout: Layout, whole: Layout) -> Bools:
    """Which elements of the whole adapter, (size,), are those of a message that has some of its tensors."""
    names = {name for name, _ in layout.shapes}
    return np.repeat(np.array([name in names for name, _ in whole.shapes], np.bool_), whole.sizes)


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
    return np.flatnonzero(taken)
