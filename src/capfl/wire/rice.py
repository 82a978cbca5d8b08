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

from capfl.errors import WireError
from capfl.wire.layout import Ints

MAX_K = 31


def encode(values: Ints, ks: Ints) -> bytes:
    """Numbers >= 0 (n,) under parameters (n,) as bytes."""
    ends = np.cumsum((values >> ks) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, np.bool_)
    unary[ends - 1] = True
    return np.packbits(unary).tobytes() + b"".join(pack(values[ks == k], k) for k in _in_use(ks))


def decode(data: memoryview, ks: Ints) -> Ints:
    """What ``encode`` was given, from exactly its bytes.

    Raises:
        WireError: the bytes do not hold so many numbers, or hold more.
    """
    n, counts = len(ks), np.bincount(ks)
    n_unary = len(data) - sum((k * int(counts[k]) + 7) // 8 for k in _in_use(ks))
    if n_unary < (n + 7) // 8:
        raise WireError(f"{len(data)} bytes are too few for {n} numbers")
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(data[:n_unary], np.uint8)))
    if len(ends) != n or n_unary != (int(ends[-1]) // 8 + 1 if n else 0):
        raise WireError(f"{n_unary} bytes of unary code hold {len(ends)} numbers, expected {n}")
    values: Ints = np.diff(ends, prepend=-1) - 1
    if n and int(values.max()) >> (62 - MAX_K):
        raise WireError("a number is too large")
    values = values << ks
    at = n_unary
    for k in _in_use(ks):
        count = int(counts[k])
        length = (k * count + 7) // 8
        values[ks == k] |= unpack(data[at : at + length], count, k)
        at += length
    return values


def _in_use(ks: Ints) -> list[int]:
    """The parameters under which numbers have low bits, ascending."""
    return [int(k) for k in np.flatnonzero(np.bincount(ks)) if k]


def pack(values: Ints, width: int) -> bytes:
    """The ``width`` low bits of every number, highest bit first, with zeros up to a whole byte."""
    word = _word(width)
    octets = values.astype(word).view(np.uint8).reshape(len(values), word.itemsize)
    return np.packbits(np.unpackbits(octets, axis=1)[:, 8 * word.itemsize - width :]).tobytes()


def unpack(data: memoryview, count: int, width: int) -> Ints:
    """``count`` numbers of ``width`` bits. ``data`` has just the bytes that they take.

    Raises:
        WireError: the spare bits at the end are not zero, so this is not what ``pack`` wrote.
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[count * width :].any():
        raise WireError("spare bits are not zero")
    word = _word(width)
    table = np.zeros((count, 8 * word.itemsize), np.uint8)
    table[:, 8 * word.itemsize - width :] = bits[: count * width].reshape(count, width)
    return np.packbits(table, axis=1).view(word).reshape(count).astype(np.int64)


def _word(width: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest big-endian word that holds so many bits."""
    return np.dtype(">u1" if width <= 8 else ">u2" if width <= 16 else ">u4")


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
