"""What a message says, in bits: the length that no code of its positions and values can go below.

Positions: k of the n elements of a tensor can be chosen in C(n, k) ways, so they take log2 C(n, k) bits, tensor by
tensor; nothing where the receiver knows them. Values: n times the empirical entropy of their symbols over the message.
A symbol is the sign (ternary), the sign and the level (8bit, 4bit, 3bit, 2bit), or 8 bits a byte (fp32, bf16). Header,
scales, importances and the numbers of elements are not counted: they are what a message costs above its bound.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from capfl.types import Adapter
from capfl.wire.body import SECTIONS
from capfl.wire.codec import Codec
from capfl.wire.downlink import PLAIN
from capfl.wire.header import unseal
from capfl.wire.layout import Floats, Ints, Layout
from capfl.wire.message import BROADCAST, UPDATE
from capfl.wire.sections import Section, read, write
from capfl.wire.values import unpack_levels

_PLAIN = ("fp32", "bf16")


def bits_up(blob: bytes, codec: Codec, schema: bytes, template: Adapter) -> float:
    """Bits that an update's adapter says. Raises WireError where it is none."""
    header, body = unseal(blob, UPDATE, codec.values.tag, schema)
    sections = read(body, tuple(Section))
    return bits(
        b"".join(write(tag, bytes(data)) for tag, data in sections if tag in SECTIONS), codec, template, header.round
    )


def bits_down(blob: bytes, codec: Codec, schema: bytes, template: Adapter) -> float:
    """Bits that a broadcast's adapters say, all that it catches up on included. Raises WireError where it is none."""
    header, body = unseal(blob, BROADCAST, codec.values.tag, schema)
    versions = [pair for pair in read(body, tuple(Section)) if pair[0] in (Section.DIFFERENCE, Section.STATE)]
    first = header.round - len(versions)
    return sum(
        bits(bytes(data), Codec(PLAIN) if tag is Section.STATE else codec, template, first + n)
        for n, (tag, data) in enumerate(versions)
    )


def bits(body: bytes, codec: Codec, template: Adapter, round: int) -> float:
    """Bits that the body of a message of a round says.

    Raises:
        WireError: it is not a body of this codec, for this template.
    """
    found = 0.0
    listed = any(tag is Section.POSITIONS for tag, _ in read(memoryview(body), tuple(Section)))

    def count(scales: memoryview, data: memoryview, kept: Ints, layout: Layout) -> Floats:
        nonlocal found
        if listed:
            numbers = np.diff(np.searchsorted(kept, np.append(layout.starts, layout.size)))
            found += sum(log2_choose(int(n), int(k)) for n, k in zip(layout.sizes, numbers, strict=True))
        found += _value_bits(codec.values.name, data, len(kept))
        return codec.values.decode(scales, data, kept, layout)

    replace(codec, values=replace(codec.values, decode=count)).decode(memoryview(body), template, round)
    return found


def log2_choose(n: int, k: int) -> float:
    """log2 of the number of ways to choose k of n."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def entropy(symbols: Ints) -> float:
    """Empirical entropy of all symbols (n,) together, in bits."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if len(symbols) else 0.0


def _value_bits(name: str, data: memoryview, count: int) -> float:
    if name in _PLAIN:
        return 8.0 * len(data)
    n_signs = (count + 7) // 8
    signs = np.unpackbits(np.frombuffer(data[:n_signs], np.uint8))[:count].astype(np.int64)
    if name == "ternary":
        return entropy(signs)
    return entropy(2 * unpack_levels(data[n_signs:], count, int(name.removesuffix("bit")) - 1) + signs)
