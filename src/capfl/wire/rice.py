"""Rice codes for whole numbers, all of a message at once.

Rice, Some practical universal noiseless coding techniques, JPL Publication 79-22, 1979; Golomb, Run-length encodings,
IEEE Trans. Inf. Theory 12(3), 1966. A number v with parameter k is floor(v / 2^k) zeros, a one, and the k low bits
of v. Here the unary parts of all numbers come first, then the low bits of those with k = 1, then those with k = 2,
and so on; each run ends on a whole byte, so that numpy packs it in one go.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from capfl.errors import WireError
from capfl.wire.layout import Ints

MAX_K = 31


def encode(values: Ints, ks: Ints | int) -> bytes:
    """Numbers >= 0 (n,) under parameters (n,), or one for all, as bytes."""
    ends = np.cumsum((values >> ks) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, np.bool_)
    unary[ends - 1] = True
    tails = [(k, values if mask is None else values[mask]) for k, _, mask in _runs(ks, len(values))]
    return np.packbits(unary).tobytes() + b"".join(pack(low, k) for k, low in tails)


def n_bytes(values: Ints, k: int) -> int:
    """The length of ``encode(values, k)``."""
    return (int((values >> k).sum()) + len(values) + 7) // 8 + (k * len(values) + 7) // 8


def decode(data: memoryview, ks: Ints | int, count: int | None = None) -> Ints:
    """What ``encode`` was given, from exactly its bytes.

    Args:
        count: how many numbers there are, where one parameter is for all.

    Raises:
        WireError: the bytes do not hold so many numbers, or hold more.
    """
    n = count if isinstance(ks, int) else len(ks)
    assert n is not None
    runs = _runs(ks, n)
    n_unary = len(data) - sum((k * m + 7) // 8 for k, m, _ in runs)
    if n_unary < (n + 7) // 8:
        raise WireError(f"{len(data)} bytes are too few for {n} numbers")
    unary = np.unpackbits(np.frombuffer(data[:n_unary], np.uint8)).view(np.bool_)
    ends = np.flatnonzero(unary)
    if len(ends) != n or (len(ends) and (int(ends[-1]) + 8) // 8 != n_unary) or (n_unary and not len(ends)):
        raise WireError(f"{n_unary} bytes of unary code hold {len(ends)} numbers, expected {n}")
    values: Ints = np.diff(ends, prepend=-1) - 1
    if len(values) and int(values.max()) >> (62 - MAX_K):
        raise WireError("a number is too large")
    values = values << ks
    at = n_unary
    for k, m, mask in runs:
        length = (k * m + 7) // 8
        low = unpack(data[at : at + length], m, k)
        if mask is None:
            values |= low
        else:
            values[mask] |= low
        at += length
    return values


def _runs(ks: Ints | int, n: int) -> list[tuple[int, int, npt.NDArray[np.bool_] | None]]:
    """For each parameter but 0, ascending: itself, how many numbers have it, and which (None: all)."""
    if isinstance(ks, int):
        return [(ks, n, None)] if ks and n else []
    widths, counts = np.unique(ks, return_counts=True)
    return [(int(k), int(m), ks == k) for k, m in zip(widths, counts, strict=True) if k]


def pack(values: Ints, width: int) -> bytes:
    """The ``width`` low bits of every number, highest bit first, with zeros up to a whole byte."""
    if width > 8:
        word = _word(width)
        octets = values.astype(word).view(np.uint8).reshape(len(values), word.itemsize)
        return np.packbits(np.unpackbits(octets, axis=1)[:, 8 * word.itemsize - width :]).tobytes()
    eights = np.zeros(8 * -(-len(values) // 8), np.uint64)  # eight numbers fill ``width`` bytes
    eights[: len(values)] = values
    eights &= np.uint64(2**width - 1)
    columns = eights.reshape(-1, 8)
    words = np.zeros(len(columns), np.uint64)
    for n in range(8):
        words |= columns[:, n] << np.uint64((7 - n) * width)
    octets = words.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - width :]
    return octets.tobytes()[: (len(values) * width + 7) // 8]


def unpack(data: memoryview, count: int, width: int) -> Ints:
    """``count`` numbers of ``width`` bits. ``data`` has just the bytes that they take.

    Raises:
        WireError: the spare bits at the end are not zero, so this is not what ``pack`` wrote.
    """
    spare = 8 * len(data) - count * width
    if spare and data[-1] & (2**spare - 1):
        raise WireError("spare bits are not zero")
    if width > 8:
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        word = _word(width)
        table = np.zeros((count, 8 * word.itemsize), np.uint8)
        table[:, 8 * word.itemsize - width :] = bits[: count * width].reshape(count, width)
        return np.packbits(table, axis=1).view(word).reshape(count).astype(np.int64)
    octets = np.zeros((-(-count // 8), 8), np.uint8)
    whole = np.zeros(width * len(octets), np.uint8)
    whole[: len(data)] = np.frombuffer(data, np.uint8)
    octets[:, 8 - width :] = whole.reshape(-1, width)
    words = octets.reshape(-1).view(">u8").astype(np.uint64)
    shifts = np.arange(7, -1, -1, dtype=np.uint64) * np.uint64(width)
    numbers = (words[:, None] >> shifts) & np.uint64(2**width - 1)
    return numbers.reshape(-1)[:count].astype(np.int64)


def _word(width: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest big-endian word that holds so many bits."""
    return np.dtype(">u2" if width <= 16 else ">u4")


def best_k(total: int, count: int) -> int:
    """The parameter for ``count`` numbers that sum to ``total``, taken as geometrically distributed.

    Kiely, Selecting the Golomb parameter in Rice coding, IPN Progress Report 42-159, 2004: with mean m and the golden
    ratio g, k = max(0, 1 + floor(log2(log(g - 1) / log(m / (m + 1))))).
    """
    if not count or not total:
        return 0
    mean = total / count
    return min(MAX_K, max(0, 1 + math.floor(math.log2(math.log((math.sqrt(5) - 1) / 2) / math.log(mean / (mean + 1))))))


def zigzag(values: Ints) -> Ints:
    """Signed to unsigned: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def unzigzag(values: Ints) -> Ints:
    return np.where(values & 1, -(values + 1) // 2, values // 2)
