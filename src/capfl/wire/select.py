"""Which elements are sent: exactly density * P of them where the largest are, about as many where chance decides."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from capfl.rng import stream
from capfl.wire.layout import Floats, Ints, Layout

_CIRCLE = 2**32


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


def top_of_all(flat: Floats, density: float, layout: Layout) -> Ints:
    """Positions of the largest magnitudes of the whole adapter, ascending."""
    return _top(np.abs(flat), round(density * layout.size))


@lru_cache(maxsize=2)  # all messages of a round have the same
def drawn(round_: int, density: float, layout: Layout, whole: Layout, seed: int) -> Ints:
    """Positions that follow from the run's seed and the round, so they need not be sent.

    Each element of the ``whole`` adapter has a random place on a circle, and is there while a window as wide as the
    density, which moves on by its own width every round, lies over that place: with probability ``density``, and every
    1 / density rounds. All clients of a round have the same mask, so their mean is of all of them wherever it is of
    any, and the server answers with the same elements.
    """
    place = stream(seed, "mask").integers(0, _CIRCLE, whole.size, np.uint32)
    if layout != whole:
        starts = dict(zip((name for name, _ in whole.shapes), whole.starts, strict=True))
        pieces = zip(layout.shapes, layout.sizes, strict=True)
        place = np.concatenate([place[starts[n] : starts[n] + size] for (n, _), size in pieces] or [place[:0]])
    width = min(_CIRCLE - 1, round(density * _CIRCLE))
    kept: Ints = np.flatnonzero(place - np.uint32(round_ * width % _CIRCLE) < np.uint32(width))
    kept.setflags(write=False)
    return kept


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
