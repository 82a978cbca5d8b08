"""Values as bytes: plain, or as a sign, a level, and one scale for each rank.

A level j of L stands for the magnitude lo + (j + 1/2)(hi - lo)/L, with lo of the tensor and hi of the rank. Ternary
has one level, and its scale is the mean magnitude of what is kept of a rank: Sattler et al., Robust and
Communication-Efficient Federated Learning from Non-IID Data, arXiv:1903.02891, for a rank in place of a tensor. The
mean magnitude is closest; where a message has to be right on average, the scale is ||x||^2 / ||x||_1, with which what
arrives has the length of what was sent along it: Vargaftik et al., DRIVE, arXiv:2105.08339.
Scales have two bits of mantissa (ternary) or three (levels), which also keeps sums of few values exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from capfl.errors import WireError
from capfl.wire import rice
from capfl.wire.layout import Floats, Ints, Layout
from capfl.wire.scales import DOWN, NEAREST, UP, Doubles, Scales

_TERNARY, _LEVELS = Scales(mantissa=2), Scales(mantissa=3)  # the error of one bit drowns that of its scale
_FIXED = 0xFF  # levels of fixed width, in the place of a Rice parameter


@dataclass(frozen=True)
class Values:
    """How values are written. ``tag`` marks it on the wire.

    ``encode(values, kept, layout, unbiased)`` gives (scales, values) as bytes; ``decode`` inverts it.
    """

    name: str
    tag: int
    encode: Callable[[Floats, Ints, Layout, bool], tuple[bytes, bytes]]
    decode: Callable[[memoryview, memoryview, Ints, Layout], Floats]
    exact: bool = False


def _plain(name: str, tag: int, dtype: torch.dtype) -> Values:
    """Every value in one dtype, little-endian."""

    def encode(values: Floats, kept: Ints, layout: Layout, unbiased: bool = False) -> tuple[bytes, bytes]:
        return b"", torch.from_numpy(values).to(dtype).view(torch.uint8).numpy().tobytes()

    def decode(scales: memoryview, data: memoryview, kept: Ints, layout: Layout) -> Floats:
        if len(scales) or len(data) != dtype.itemsize * len(kept):
            raise WireError(f"{len(data)} bytes of values, {len(kept)} in {name} take {dtype.itemsize * len(kept)}")
        found: Floats = torch.frombuffer(bytearray(data), dtype=dtype).to(torch.float32).numpy()
        return found

    return Values(name, tag, encode, decode, exact=dtype == torch.float32)


def _ternary() -> Values:
    def encode(values: Floats, kept: Ints, layout: Layout, unbiased: bool = False) -> tuple[bytes, bytes]:
        ranks = Groups.of(kept, layout.rank_starts)
        magnitude = np.abs(values).astype(np.float64)
        scales = np.add.reduceat(magnitude, ranks.first) / ranks.counts
        if unbiased:
            energy = np.add.reduceat(magnitude**2, ranks.first) / ranks.counts
            scales = np.divide(energy, scales, out=scales, where=scales > 0)
        negative = (values < 0) | ((values == 0) & (kept % 2 == 1))  # zeros push to both sides alike
        return _TERNARY.write(_TERNARY.code(scales, NEAREST)), np.packbits(negative).tobytes()

    def decode(scales: memoryview, data: memoryview, kept: Ints, layout: Layout) -> Floats:
        ranks = Groups.of(kept, layout.rank_starts)
        return _signed(np.repeat(_TERNARY.read(scales, len(ranks.first)), ranks.counts), data)

    return Values("ternary", 3, encode, decode)


def _levels(name: str, tag: int, bits: int) -> Values:
    """A sign and bits - 1 bits of magnitude; a Rice code where that is shorter."""
    n_levels = 2 ** (bits - 1)

    def grid(scale: Doubles, ranks: Groups, tensors: Groups) -> tuple[Doubles, Doubles]:
        """(lowest magnitude, width of a level) of every value, from the tensors' lo and the ranks' hi."""
        low = np.repeat(scale[: len(tensors.first)], tensors.counts)
        return low, np.maximum(0.0, np.repeat(scale[len(tensors.first) :], ranks.counts) - low) / n_levels

    def encode(values: Floats, kept: Ints, layout: Layout, unbiased: bool = False) -> tuple[bytes, bytes]:
        magnitude = np.abs(values)
        ranks, tensors = Groups.of(kept, layout.rank_starts), Groups.of(kept, layout.starts)
        lo, hi = np.minimum.reduceat(magnitude, tensors.first), np.maximum.reduceat(magnitude, ranks.first)
        codes = np.concatenate([_LEVELS.code(lo, DOWN), _LEVELS.code(hi, UP)])
        low, width = grid(_LEVELS.value(codes), ranks, tensors)
        place = np.floor((magnitude - low) / np.where(width > 0, width, np.inf))
        level = np.clip(place, 0, n_levels - 1).astype(np.int64)
        return _LEVELS.write(codes), np.packbits(values < 0).tobytes() + _pack_levels(level, bits - 1)

    def decode(scales: memoryview, data: memoryview, kept: Ints, layout: Layout) -> Floats:
        ranks, tensors = Groups.of(kept, layout.rank_starts), Groups.of(kept, layout.starts)
        low, width = grid(_LEVELS.read(scales, len(tensors.first) + len(ranks.first)), ranks, tensors)
        n_signs = (len(kept) + 7) // 8
        level = unpack_levels(data[n_signs:], len(kept), bits - 1)
        return _signed(low + (level + 0.5) * width, data[:n_signs])

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
    def of(kept: Ints, starts: Ints) -> Groups:
        first = np.searchsorted(kept, starts)
        counts = np.diff(first, append=len(kept))
        return Groups(first[counts > 0], counts[counts > 0])


# -- signs and levels -----------------------------------------------------------------------------


def _signed(magnitude: Doubles, signs: memoryview) -> Floats:
    found: Floats = magnitude.astype(np.float32)
    return np.negative(found, out=found, where=rice.unpack(signs, len(found), 1).astype(np.bool_))


def _pack_levels(levels: Ints, width: int) -> bytes:
    """The levels in whichever code is shorter."""
    return min(bytes([_FIXED]) + rice.pack(levels, width), rice.write(levels), key=len)


def unpack_levels(data: memoryview, n: int, width: int) -> Ints:
    """The n levels of ``width`` bits that ``_pack_levels`` wrote. Raises WireError: the bytes are none."""
    if len(data) and data[0] == _FIXED:
        return rice.unpack(data[1:], n, width)
    levels = rice.read(data, n)
    if (levels >= 2**width).any():
        raise WireError(f"a level is not below {2**width}")
    return levels
