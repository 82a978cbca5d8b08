"""Rice codes for whole numbers, all of a list at once, and numbers of a fixed width.

Rice, Some practical universal noiseless coding techniques, JPL Publication 79-22, 1979; Golomb, Run-length encodings,
IEEE Trans. Inf. Theory 12(3), 1966. A number v with parameter k is floor(v / 2^k) zeros, a one, and the k low bits
of v. Here the parameter comes first, in a byte, then the unary parts of all numbers, then their low bits; each of the
two runs ends on a whole byte, so that numpy packs it in one go.
"""

from __future__ import annotations

import math

import numpy as np

from capfl.errors import WireError
from capfl.wire.layout import Ints

MAX_K = 31


def write(values: Ints) -> bytes:
    """Numbers >= 0 (n,) as bytes."""
    k = best_k(int(values.sum()), len(values))
    ends = np.cumsum((values >> k) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, np.bool_)
    unary[ends - 1] = True
    return bytes([k]) + np.packbits(unary).tobytes() + pack(values, k)


def read(data: memoryview, n: int) -> Ints:
    """The n numbers that ``write`` was given, from exactly its bytes.

    Raises:
        WireError: the bytes do not hold so many numbers, or hold more.
    """
    if not len(data) or data[0] > MAX_K:
        raise WireError(f"{len(data)} bytes do not begin with a Rice parameter")
    k, n_unary = data[0], len(data) - 1 - _n_bytes(n, data[0])
    if n_unary < _n_bytes(n, 1):
        raise WireError(f"{len(data)} bytes are too few for {n} numbers")
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(data[1 : 1 + n_unary], np.uint8)))
    if len(ends) != n or n_unary != (int(ends[-1]) // 8 + 1 if n else 0):
        raise WireError(f"{n_unary} bytes of unary code hold {len(ends)} numbers, expected {n}")
    quotients: Ints = np.diff(ends, prepend=-1) - 1
    return (quotients << k) | unpack(data[1 + n_unary :], n, k)


def pack(values: Ints, width: int) -> bytes:
    """The ``width`` low bits of every number, at most 31, highest bit first, with zeros up to a whole byte."""
    bits = np.empty((len(values), width), np.uint8)
    for place in range(width):
        bits[:, place] = (values >> (width - 1 - place)) & 1
    return np.packbits(bits).tobytes()


def unpack(data: memoryview, n: int, width: int) -> Ints:
    """``n`` numbers of ``width`` bits.

    Raises:
        WireError: the bytes are too few or too many, or the spare bits at their end are not zero.
    """
    if len(data) != _n_bytes(n, width):
        raise WireError(f"{len(data)} bytes, {n} numbers of {width} bits take {_n_bytes(n, width)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[n * width :].any():
        raise WireError("spare bits are not zero")
    values = np.zeros(n, np.int64)
    for place in range(width):
        values = values << 1 | bits[place : n * width : width]
    return values


def best_k(total: int, n: int) -> int:
    """The parameter for ``n`` numbers that sum to ``total``, taken as geometrically distributed.

    Kiely, Selecting the Golomb parameter in Rice coding, IPN Progress Report 42-159, 2004: with mean m and the golden
    ratio g, k = max(0, 1 + floor(log2(log(g - 1) / log(m / (m + 1))))).
    """
    if not n or not total:
        return 0
    mean = total / n
    return min(MAX_K, max(0, 1 + math.floor(math.log2(math.log((math.sqrt(5) - 1) / 2) / math.log(mean / (mean + 1))))))


def zigzag(values: Ints) -> Ints:
    """Signed to unsigned: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def unzigzag(values: Ints) -> Ints:
    """What ``zigzag`` was given."""
    return np.where(values & 1, -(values + 1) // 2, values // 2)


def _n_bytes(n: int, width: int) -> int:
    return (n * width + 7) // 8
