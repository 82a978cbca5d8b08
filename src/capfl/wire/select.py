"""Which elements are sent: the largest of each tensor or rank, or those on which chance decides."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from capfl.rng import stream
from capfl.wire.budget import Budget
from capfl.wire.layout import Bools, Floats, Layout, Places, places_of

T = TypeVar("T", bound=np.generic)

_CIRCLE = 2**32
_GOLDEN = 2654435769  # the golden section of the circle


def largest(flat: Floats, budget: Budget) -> Places:
    """Positions of the largest magnitudes of every group, as many as its budget, ascending. Zeros are never taken."""
    ends = np.cumsum(budget.lengths)
    runs = np.argsort(budget.owner, kind="stable")
    last = np.cumsum(np.bincount(budget.owner, minlength=len(budget.sizes)))
    there = np.zeros(len(flat), np.bool_)
    for count, own in zip(budget.counts, np.split(runs, last[:-1])[: len(last)], strict=True):
        pieces = [slice(ends[run] - budget.lengths[run], ends[run]) for run in own]
        taken = _top(np.concatenate([flat[:0], *(np.abs(flat[piece]) for piece in pieces)]), int(count))
        for piece in pieces:
            n = piece.stop - piece.start
            there[piece], taken = taken[:n], taken[n:]
    return places_of(there)


def drawn(number: int, density: float, layout: Layout, whole: Layout, seed: int) -> Places:
    """Positions that follow from the run's seed and the number of the version, so they need not be sent.

    Each element of the ``whole`` adapter has a random place on a circle, and is there while a window as wide as the
    density, which moves on by its own width from version to version, lies over that place: with probability
    ``density``, and every 1 / density versions. All clients of a turn have the same mask, so their mean is of all of
    them wherever it is of any, and the server answers with the same elements.
    """
    place = _places(whole, seed)
    if layout.shapes != whole.shapes:
        place = place[_within(layout, whole)]
    width = min(_CIRCLE - 1, round(density * _CIRCLE))
    start, there = np.uint32(number * width % _CIRCLE), np.empty(layout.size, np.bool_)
    for block in layout.blocks():
        np.less(place[block.elements] - start, np.uint32(width), out=there[block.elements])
    return places_of(there)


def windows(number: int, budget: Budget, layout: Layout, whole: Layout, seed: int) -> Places:
    """Positions of as many elements of every rank as its budget that follow from the seed and the version's number.

    A rank's elements stand in the order of their random places, and a window of as many as it may send moves over
    them, version by version, in steps of the golden section: each comes up evenly often, however wide the window is. A
    version's windows begin at the same place, so one client has whatever another has that sends less of the rank.
    """
    start = (number * _GOLDEN % _CIRCLE) * budget.sizes >> 32
    turn, there = _turns(layout, whole, seed), np.empty(layout.size, np.bool_)
    for block in layout.blocks():
        owner, lengths = budget.owner[block.ranks], budget.lengths[block.ranks]
        begin, size, count = (
            np.repeat(n[owner].astype(np.int32), lengths) for n in (start, budget.sizes, budget.counts)
        )
        after = turn[block.elements].astype(np.int32) - begin  # how far it stands behind the window's beginning
        after += size * (after < 0)
        np.less(after, count, out=there[block.elements])
    return places_of(there)


Turns = npt.NDArray[np.unsignedinteger[Any]]
"""The number of each element, (size,), among those of its rank by their places; of equals the first is first."""


def _turns(layout: Layout, whole: Layout, seed: int) -> Turns:
    """The turns of a message's elements among those of their ranks that are in the message."""
    return _all_turns(whole, seed) if layout.shapes == whole.shapes else _turns_of_part(layout, whole, seed)


@lru_cache(maxsize=2)  # where factors are trained one after the other, there are two kinds of messages
def _turns_of_part(layout: Layout, whole: Layout, seed: int) -> Turns:
    of_all = _all_turns(whole, seed)
    found = np.empty(layout.size, of_all.dtype)
    at, there = _pieces(whole), _pieces(layout)
    for module, pieces in there.items():
        for name, piece in pieces.items():
            found[piece] = of_all[at[module][name]]
        if len(pieces) < len(at[module]):  # one factor alone: its turns follow each other without those of the other
            (piece,) = pieces.values()
            rows = _rows(found[piece], whole, module).astype(np.int64)
            marks = np.zeros((len(rows), int(rows.max(initial=0)) + 1), np.int32)
            np.put_along_axis(marks, rows, 1, axis=1)
            found[piece] = (np.take_along_axis(np.cumsum(marks, axis=1), rows, axis=1) - 1).reshape(-1)
    found.setflags(write=False)
    return found


@lru_cache(maxsize=2)  # a server decodes as many updates as there are clients: one draw and one sort serve all
def _all_turns(whole: Layout, seed: int) -> Turns:
    """The turns of all elements, in as few bytes as the longest rank allows."""
    places = _places(whole, seed)
    longest = int(np.bincount(whole.owners(whole), whole.rank_sizes, minlength=1).max())
    kind: type[np.unsignedinteger[Any]] = np.uint16 if longest < 2**16 else np.uint32
    found = np.empty(whole.size, kind)
    for module, pieces in _pieces(whole).items():
        rows = np.concatenate([_rows(places[piece], whole, module) for piece in pieces.values()], axis=1)
        order = np.argsort(rows, axis=1, kind="stable")
        turns = np.empty_like(order)
        np.put_along_axis(turns, order, np.arange(order.shape[1])[None], axis=1)
        for piece in pieces.values():
            n = (piece.stop - piece.start) // len(turns)
            found[piece], turns = turns[:, :n].reshape(-1), turns[:, n:]
    found.setflags(write=False)
    return found


def _pieces(layout: Layout) -> dict[str, dict[str, slice]]:
    """Where the tensors of each module are, by their names."""
    found: dict[str, dict[str, slice]] = {}
    for (name, _), start, size in zip(layout.shapes, layout.starts, layout.sizes, strict=True):
        found.setdefault(name[:-2], {})[name] = slice(int(start), int(start + size))
    return found


def _rows(values: npt.NDArray[T], whole: Layout, module: str) -> npt.NDArray[T]:
    """The values of a tensor, a row for each rank."""
    return values.reshape(whole.rank_of[module], -1)


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


def _top(magnitude: Floats, count: int) -> Bools:
    """Which are the ``count`` largest, those that come first among equals; zeros are never taken."""
    if count >= len(magnitude):
        return magnitude > 0
    if count == 0:
        return np.zeros(len(magnitude), np.bool_)
    least = np.partition(magnitude, len(magnitude) - count)[len(magnitude) - count]
    taken: Bools = magnitude > least
    if least > 0:
        taken[np.flatnonzero(magnitude == least)[: count - int(taken.sum())]] = True
    return taken
