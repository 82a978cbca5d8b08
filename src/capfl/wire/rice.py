"""Rice codes for whole numbers, all of a list at once, and numbers of a fixed width.

Rice, Some practical universal noiseless coding techniques, JPL Publication 79-22, 1979; Golomb, Run-length encodings,
IEEE Trans. Inf. Theory 12(3), 1966. A number v with parameter k is floor(v / 2^k) zeros, a one, and the k low bits
of v. Here the parameter comes first, in a byte, then the unary parts of all numbers, then their low bits; each of the
two runs ends on a whole byte, so that numpy packs it in one go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
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
    kind, packed = _word(width), list[bytes]()
    for begin in range(0, len(values), BLOCK):  # a block of numbers is whole bytes
        block = values[begin : begin + BLOCK]
        eights = np.zeros(-(-len(block) // 8) * 8, kind)
        eights[: len(block)] = block.astype(kind) & kind((1 << width) - 1)
        columns = np.ascontiguousarray(eights.reshape(-1, 8).T)
        found = np.empty((columns.shape[1], width), np.uint8)
        for byte in range(width):  # of each eight numbers
            first, last = 8 * byte // width, (8 * byte + 7) // width
            above = [(i + 1) * width - 8 * (byte + 1) for i in range(first, last + 1)]  # bits that are no longer in it
            parts = [columns[i] >> n if n >= 0 else columns[i] << -n for i, n in enumerate(above, first)]
            found[:, byte] = reduce(np.bitwise_or, parts)
        packed.append(found.tobytes()[: _n_bytes(len(block), width)])
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


def _word(width: int) -> type[np.integer[Any]]:
    """The smallest type that holds the bytes in which a number of so many bits can lie: eight begin at every bit."""
    return np.uint16 if width <= 9 else np.uint32 if width <= 25 else np.int64


def _chunks(data: memoryview, n: int, width: int) -> Iterator[Places]:
    """The numbers that ``unpack`` gives, some at a time. Raises as it does, with the first."""
    kind = _word(width)
    if len(data) != _n_bytes(n, width):
        raise WireError(f"{len(data)} bytes, {n} numbers of {width} bits take {_n_bytes(n, width)}")
    if n * width % 8 and data[-1] & ((1 << (-n * width % 8)) - 1):
        raise WireError("spare bits are not zero")
    for begin in range(0, n, BLOCK):
        count = min(BLOCK, n - begin)
        if not width:
            yield np.zeros(count, np.int64)
            continue
        raw = np.frombuffer(data[begin * width // 8 : _n_bytes(begin + count, width)], np.uint8)
        eights = np.zeros(-(-count // 8) * width, np.uint8)
        eights[: len(raw)] = raw
        columns = np.ascontiguousarray(eights.reshape(-1, width).T).astype(kind)
        values = np.empty((columns.shape[1], 8), kind)
        for i in range(8):
            first, last = i * width // 8, ((i + 1) * width - 1) // 8
            word = reduce(lambda high, low: high << 8 | low, columns[first : last + 1])
            values[:, i] = word >> (8 * (last + 1) - (i + 1) * width) & kind((1 << width) - 1)
        yield values.ravel()[:count]


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
