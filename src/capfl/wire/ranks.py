"""How important each rank of each module is, as bytes, and how many elements a rank may send for it.

A rank is a row of A and the column of B that goes with it. Importance is sent in the place of positions: a bit for
each rank, is it important at all? and a scale for those that are. Writer and reader share out the budget by what was
read, so they agree to the last element.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from capfl.errors import WireError
from capfl.maths.budget import allocate
from capfl.wire.layout import Bools, Ints, Layout
from capfl.wire.scales import Doubles, Scales

_SCALES = Scales(mantissa=3)


@dataclass(frozen=True)
class Ranks:
    """The ranks of all modules that have both factors, in the order of the agreed adapter.

    Attributes:
        owner: the rank that each element of a message belongs to, (size,).
        sizes: how many elements of a message belong to each rank, (n,).
    """

    owner: Ints
    sizes: Ints

    @staticmethod
    @lru_cache(maxsize=4)
    def of(layout: Layout, whole: Layout) -> Ranks:
        """The ranks of the ``whole`` adapter in a message of ``layout``.

        Raises:
            WireError: the message has a tensor whose module has no other factor.
        """
        first, n = _first(whole)
        lengths = np.diff(layout.rank_starts, append=layout.size)
        owners = [np.zeros(0, np.int64)]
        for name, shape in layout.shapes:
            module, _, factor = name.rpartition(".")
            if module not in first or factor not in ("A", "B"):
                raise WireError(f"{name!r} is half of a pair: its ranks have no importance")
            owners.append(first[module] + np.arange(shape[factor == "B"], dtype=np.int64))
        owner = np.repeat(np.concatenate(owners), lengths)
        sizes: Ints = np.bincount(owner, minlength=n).astype(np.int64)
        for array in (owner, sizes):
            array.setflags(write=False)
        return Ranks(owner, sizes)


def paired(whole: Layout) -> Layout:
    """The factors of all modules that have both: the tensors that have ranks."""
    factors = {f"{module}.{factor}" for module in _first(whole)[0] for factor in "AB"}
    return Layout(tuple((name, shape) for name, shape in whole.shapes if name in factors))


def encode(importance: Doubles, whole: Layout) -> bytes:
    """Importance (n,) of the ranks of the ``whole`` adapter, in units of the largest.

    Raises:
        WireError: another shape, or a number that is negative or not finite, or no number that is not zero.
    """
    importance, n = np.asarray(importance, np.float64), _first(whole)[1]
    if importance.shape != (n,):
        raise WireError(f"importance has shape {importance.shape}, the adapter has {n} ranks")
    if not np.isfinite(importance).all() or (importance < 0).any() or not importance.any():
        raise WireError("the importance of a rank is negative or not finite, or that of all is zero")
    alive = importance > 0
    codes = _SCALES.code(importance[alive] / importance.max())
    return np.packbits(alive).tobytes() + _SCALES.write(np.maximum(codes, 1))  # what is not zero stays so


def decode(data: memoryview, whole: Layout) -> Doubles:
    """What arrives of the importance that ``encode`` was given, (n,).

    Raises:
        WireError: the bytes are not the importance of so many ranks.
    """
    n = _first(whole)[1]
    n_bits = (n + 7) // 8
    if len(data) < n_bits:
        raise WireError(f"{len(data)} bytes for the importance of {n} ranks")
    bits = np.unpackbits(np.frombuffer(data[:n_bits], np.uint8))
    if bits[n:].any():
        raise WireError("a rank is important that the adapter does not have")
    alive = bits[:n].view(np.bool_)
    if not alive.any():
        raise WireError("no rank is of any importance")
    importance = np.zeros(n)
    importance[alive] = _SCALES.read(data[n_bits:], int(alive.sum()))
    if not importance[alive].all():
        raise WireError("a rank is marked as important and has importance 0")
    return importance


def share_out(importance: Doubles, density: float, layout: Layout, whole: Layout) -> Ints:
    """How many of its elements in a message each rank may send, (n,): round(density * size of the message) in all."""
    return allocate(importance, Ranks.of(layout, whole).sizes, round(density * layout.size))


def checked(alive: Bools | None, whole: Layout) -> Bools:
    """Which ranks the sender has, (n,): all where ``alive`` is None.

    Raises:
        WireError: another shape.
    """
    n = _first(whole)[1]
    if alive is None:
        return np.ones(n, np.bool_)
    if alive.shape != (n,):
        raise WireError(f"marks of living ranks have shape {alive.shape}, the adapter has {n} ranks")
    return alive


def decode_alive(data: memoryview, whole: Layout) -> Bools:
    """The marks (n,) of living ranks in a section ALIVE.

    Raises:
        WireError: the bytes are no marks of so many ranks, or none is missing.
    """
    n = _first(whole)[1]
    if len(data) != (n + 7) // 8:
        raise WireError(f"{len(data)} bytes of marks for {n} ranks")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[n:].any() or bits[:n].all():
        raise WireError("marks of living ranks name more than the adapter has, or all")
    marks: Bools = bits[:n].view(np.bool_)
    return marks


@lru_cache(maxsize=4)
def _first(whole: Layout) -> tuple[dict[str, int], int]:
    """The number of the first rank of every module that has both factors, and how many ranks there are."""
    shapes, first, n = dict(whole.shapes), dict[str, int](), 0
    for name, (r, _) in whole.shapes:
        module, _, factor = name.rpartition(".")
        if factor == "A" and f"{module}.B" in shapes:
            if shapes[f"{module}.B"][1] != r:
                raise WireError(f"{module!r} has factors of rank {r} and {shapes[f'{module}.B'][1]}")
            first[module], n = n, n + r
    return first, n
