"""Values as bytes: plain, or as a sign, a level, and one scale for each rank.

A level j of L stands for the magnitude lo + (j + 1/2)(hi - lo)/L, with lo of the tensor and hi of the rank. Ternary
has one level, and its scale is the mean magnitude of what is kept of a rank: Sattler et al., Robust and
Communication-Efficient Federated Learning from Non-IID Data, arXiv:1903.02891, for a rank in place of a tensor. The
mean magnitude is closest; where a message has to be right on average, the scale is ||x||^2 / ||x||_1, with which what
arrives has the length of what was sent along it: Vargaftik et al., DRIVE, arXiv:2105.08339.
Scales have two bits of mantissa (ternary) or three (levels), which also keeps sums of few values exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from capfl.errors import WireError
from capfl.wire import rice
from capfl.wire.layout import BLOCK, Floats, Ints, Layout, Places
from capfl.wire.scales import DOWN, NEAREST, UP, Doubles, Scales

_TERNARY, _LEVELS = Scales(mantissa=2), Scales(mantissa=3)  # the error of one bit drowns that of its scale
_FIXED = 0xFF  # levels of fixed width, in the place of a Rice parameter

Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Values:
    """How values are written. ``tag`` marks it on the wire.

    ``encode(values, kept, layout, unbiased)`` gives (scales, values) as bytes; ``decode`` inverts it.
    """

    name: str
    tag: int
    encode: Callable[[Floats, Places, Layout, bool], tuple[bytes, bytes]]
    decode: Callable[[memoryview, memoryview, Places, Layout], Floats]
    exact: bool = False


def _plain(name: str, tag: int, dtype: torch.dtype) -> Values:
    """Every value in one dtype, little-endian."""

    def encode(values: Floats, kept: Places, layout: Layout, unbiased: bool = False) -> tuple[bytes, bytes]:
        return b"", torch.from_numpy(values).to(dtype).view(torch.uint8).numpy().tobytes()

    def decode(scales: memoryview, data: memoryview, kept: Places, layout: Layout) -> Floats:
        if len(scales) or len(data) != dtype.itemsize * len(kept):
            raise WireError(f"{len(data)} bytes of values, {len(kept)} in {name} take {dtype.itemsize * len(kept)}")
        found: Floats = torch.frombuffer(bytearray(data), dtype=dtype).to(torch.float32).numpy()
        return found

    return Values(name, tag, encode, decode, exact=dtype == torch.float32)


def _ternary() -> Values:
    def encode(values: Floats, kept: Places, layout: Layout, unbiased: bool = False) -> tuple[bytes, bytes]:
        ranks = Groups.of(kept, layout.rank_starts)
        scales, negative = np.empty(len(ranks.first)), np.empty(len(values), np.bool_)
        for own, rows in ranks.blocks():
            magnitude, n = np.abs(values[rows]).astype(np.float64), ranks.counts[own]
            mean = np.add.reduceat(magnitude, ranks.first[own] - rows.start) / n
            if unbiased:
                energy = np.add.reduceat(magnitude**2, ranks.first[own] - rows.start) / n
                mean = np.divide(energy, mean, out=mean, where=mean > 0)
            scales[own] = mean
            zero = (values[rows] == 0) & (kept[rows] % 2 == 1)  # zeros push to both sides alike
            negative[rows] = (values[rows] < 0) | zero
        return _TERNARY.write(_TERNARY.code(scales, NEAREST)), np.packbits(negative).tobytes()

    def decode(scales: memoryview, data: memoryview, kept: Places, layout: Layout) -> Floats:
        ranks = Groups.of(kept, layout.rank_starts)
        scale = _TERNARY.read(scales, len(ranks.first)).astype(np.float32)
        return _signed(np.repeat(scale, ranks.counts), data)

    return Values("ternary", 3, encode, decode)


def _levels(name: str, tag: int, bits: int) -> Values:
    """A sign and bits - 1 bits of magnitude; a Rice code where that is shorter."""
    n_levels = 2 ** (bits - 1)

    def grid(scale: Doubles, ranks: Groups, tensors: Groups) -> tuple[Doubles, Doubles]:
        """(lowest magnitude, width of a level) of every rank, from the tensors' lo and the ranks' hi."""
        low = scale[np.searchsorted(tensors.first, ranks.first, side="right") - 1]
        return low, np.maximum(0.0, scale[len(tensors.first) :] - low) / n_levels

    def encode(values: Floats, kept: Places, layout: Layout, unbiased: bool = False) -> tuple[bytes, bytes]:
        ranks, tensors = Groups.of(kept, layout.rank_starts), Groups.of(kept, layout.starts)
        least, most = np.empty(len(ranks.first), np.float32), np.empty(len(ranks.first), np.float32)
        for own, rows in ranks.blocks():
            magnitude, first = np.abs(values[rows]), ranks.first[own] - rows.start
            least[own], most[own] = np.minimum.reduceat(magnitude, first), np.maximum.reduceat(magnitude, first)
        lowest = np.minimum.reduceat(least, np.searchsorted(ranks.first, tensors.first))
        codes = np.concatenate([_LEVELS.code(lowest, DOWN), _LEVELS.code(most, UP)])
        low, width = grid(_LEVELS.value(codes), ranks, tensors)
        width, level = np.where(width > 0, width, np.inf), np.empty(len(values), np.uint8)
        for own, rows in ranks.blocks():
            lo, step = (np.repeat(of_rank[own], ranks.counts[own]) for of_rank in (low, width))
            place = np.floor((np.abs(values[rows]) - lo) / step)
            level[rows] = np.clip(place, 0, n_levels - 1)
        return _LEVELS.write(codes), np.packbits(values < 0).tobytes() + _pack_levels(level, bits - 1)

    def decode(scales: memoryview, data: memoryview, kept: Places, layout: Layout) -> Floats:
        ranks, tensors = Groups.of(kept, layout.rank_starts), Groups.of(kept, layout.starts)
        low, width = grid(_LEVELS.read(scales, len(tensors.first) + len(ranks.first)), ranks, tensors)
        n_signs = (len(kept) + 7) // 8
        level = unpack_levels(data[n_signs:], len(kept), bits - 1)
        magnitude = np.empty(len(kept), np.float32)
        for own, rows in ranks.blocks():
            lo, step = (np.repeat(of_rank[own], ranks.counts[own]) for of_rank in (low, width))
            magnitude[rows] = lo + (level[rows] + 0.5) * step
        return _signed(magnitude, data[:n_signs])

    return Values(name, tag, encode, decode)


VALUES = {
    v.name: v
    for v in (
        _plain("fp32", 1, torch.float32), _plain("bf16", 2, torch.bfloat16), _ternary(),
        _levels("8bit", 4, 8), _levels("4bit", 5, 4), _levels("3bit", 6, 3), _levels("2bit", 7, 2),
    )
}  # fmt: skip


# -- groups of values that share a scale -------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """The ranks (or tensors) that have values in the message: where each begins among them, and how many it has."""

    first: Ints
    counts: Ints

    @staticmethod
    def of(kept: Places, starts: Ints) -> Groups:
        first = np.searchsorted(kept, starts)
        counts = np.diff(first, append=len(kept))
        return Groups(first[counts > 0], counts[counts > 0])

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """All groups, about ``BLOCK`` values at a time: which they are, and their values."""
        ends, begin = self.first + self.counts, 0
        while begin < len(self.first):
            start = int(self.first[begin])
            end = max(begin + 1, int(np.searchsorted(ends, start + BLOCK, side="right")))
            yield slice(begin, end), slice(start, int(ends[end - 1]))
            begin = end


# -- signs and levels -----------------------------------------------------------------------------


def _signed(magnitude: Floats, signs: memoryview) -> Floats:
    """The values, in the place of their magnitudes."""
    negative = rice.unpack(signs, len(magnitude), 1, np.uint8).view(np.bool_)
    return np.negative(magnitude, out=magnitude, where=negative)


def _pack_levels(levels: Levels, width: int) -> bytes:
    """The levels in whichever code is shorter."""
    fixed = 1 + (len(levels) * width + 7) // 8
    return rice.write(levels) if rice.length(levels) < fixed else bytes([_FIXED]) + rice.pack(levels, width)


def unpack_levels(data: memoryview, n: int, width: int) -> Levels:
    """The n levels of ``width`` bits that ``_pack_levels`` wrote. Raises WireError: the bytes are none."""
    if len(data) and data[0] == _FIXED:
        return rice.unpack(data[1:], n, width, np.uint8)
    levels = rice.read(data, n, np.uint8)
    if (levels >= 2**width).any():
        raise WireError(f"a level is not below {2**width}")
    return levels
