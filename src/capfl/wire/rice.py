"""Rice codes for whole numbers, all of a list at once, and numbers of a fixed width.

Rice, Some practical universal noiseless coding techniques, JPL Publication 79-22, 1979; Golomb, Run-length encodings,
IEEE Trans. Inf. Theory 12(3), 1966. A number v with parameter k is floor(v / 2^k) zeros, a one, and the k low bits
of v. Here the parameter comes first, in a byte, then the unary parts of all numbers, then their low bits; each of the
two runs ends on a whole byte, so that numpy packs it in one go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from capfl.errors import WireError
from capfl.wire.layout import BLOCK, Ints

Places = npt.NDArray[np.integer[Any]]
MAX_K = 31


def write(values: Places) -> bytes:
    """Numbers >= 0 (n,) as bytes."""
    k = best_k(int(values.sum()), len(values))
    unary, end = np.zeros(_n_unary(values, k), np.bool_), 0
    for begin in range(0, len(values), BLOCK):
        ends = end + np.cumsum((values[begin : begin + BLOCK] >> k).astype(np.int64) + 1)
        unary[ends - 1] = True
        end = int(ends[-1])
    return bytes([k]) + np.packbits(unary).tobytes() + pack(values, k)


def length(values: Places) -> int:
    """How many bytes ``write`` makes."""
    k = best_k(int(values.sum()), len(values))
    return 1 + _n_bytes(_n_unary(values, k), 1) + _n_bytes(len(values), k)


def _n_unary(values: Places, k: int) -> int:
    """Bits of the unary parts of all numbers."""
    blocks = (values[begin : begin + BLOCK] >> k for begin in range(0, len(values), BLOCK))
    return len(values) + sum(int(block.sum(dtype=np.int64)) for block in blocks)


def read(data: memoryview, n: int, kind: type[np.integer[Any]] = np.int64) -> npt.NDArray[Any]:
    """The n numbers that ``write`` was given, from exactly its bytes.

    Args:
        kind: what they are read into; a number that is too large for it becomes the largest that is not.

    Raises:
        WireError: the bytes do not hold so many numbers, or hold more.
    """
    if not len(data) or data[0] > MAX_K:
        raise WireError(f"{len(data)} bytes do not begin with a Rice parameter")
    k, n_unary = data[0], len(data) - 1 - _n_bytes(n, data[0])
    if n_unary < _n_bytes(n, 1):
        raise WireError(f"{len(data)} bytes are too few for {n} numbers")
    unary = np.frombuffer(data[1 : 1 + n_unary], np.uint8)
    held = sum(int(np.bitwise_count(unary[begin : begin + BLOCK]).sum()) for begin in range(0, n_unary, BLOCK))
    if held != n or (n_unary and not unary[-1]):
        raise WireError(f"{n_unary} bytes of unary code hold {held} numbers, expected {n}")
    found, low, done, before = np.empty(n, kind), _chunks(data[1 + n_unary :], n, k), 0, -1
    rest = np.zeros(0, np.int64)
    for begin in range(0, n_unary, BLOCK // 8):
        ends = 8 * begin + np.flatnonzero(np.unpackbits(unary[begin : begin + BLOCK // 8]))
        quotients = np.diff(ends, prepend=before) - 1
        before = int(ends[-1]) if len(ends) else before
        while len(rest) < len(quotients):
            rest = np.concatenate([rest, next(low)])
        numbers = np.minimum((quotients << k) | rest[: len(ends)], np.iinfo(kind).max)
        found[done : done + len(ends)], rest, done = numbers, rest[len(ends) :], done + len(ends)
    return found


def pack(values: Places, width: int) -> bytes:
    """The ``width`` low bits of every number, at most 31, highest bit first, with zeros up to a whole byte."""
    packed = []
    for begin in range(0, len(values), BLOCK):  # a block of numbers is whole bytes
        block = values[begin : begin + BLOCK]
        bits = np.empty((len(block), width), np.uint8)
        for place in range(width):
            bits[:, place] = (block >> (width - 1 - place)) & 1
        packed.append(np.packbits(bits).tobytes())
    return b"".join(packed)


def unpack(data: memoryview, n: int, width: int, kind: type[np.integer[Any]] = np.int64) -> npt.NDArray[Any]:
    """``n`` numbers of ``width`` bits.

    Args:
        kind: what they are read into, wide enough for them.

    Raises:
        WireError: the bytes are too few or too many, or the spare bits at their end are not zero.
    """
    found, done = np.empty(n, kind), 0
    for block in _chunks(data, n, width):
        found[done : done + len(block)], done = block, done + len(block)
    return found


def _chunks(data: memoryview, n: int, width: int) -> Iterator[Ints]:
    """The numbers that ``unpack`` gives, some at a time. Raises as it does, with the first."""
    if len(data) != _n_bytes(n, width):
        raise WireError(f"{len(data)} bytes, {n} numbers of {width} bits take {_n_bytes(n, width)}")
    if n * width % 8 and data[-1] & ((1 << (-n * width % 8)) - 1):
        raise WireError("spare bits are not zero")
    for begin in range(0, n, BLOCK):
        count = min(BLOCK, n - begin)
        bits = np.unpackbits(np.frombuffer(data[begin * width // 8 : _n_bytes(begin + count, width)], np.uint8))
        values = np.zeros(count, np.int64)
        for place in range(width):
            values = values << 1 | bits[place : count * width : width]
        yield values


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
