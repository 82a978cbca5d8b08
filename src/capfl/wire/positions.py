"""Which elements of a message are there: their number, and Rice-coded gaps.

What is rarer is listed, the elements that are there or those that are not; at one half the code is a bitmap (a Rice
code with k = 0 is just that).
"""

from __future__ import annotations

import numpy as np

from capfl.errors import WireError
from capfl.wire import rice
from capfl.wire.layout import Places, places_of

_HEAD = 4  # bytes of their number


def encode(kept: Places, size: int) -> bytes:
    """Positions (n,), ascending, in a vector (size,)."""
    listed = kept
    if 2 * len(kept) > size:
        missing = np.ones(size, np.bool_)
        missing[kept] = False
        listed = places_of(missing)
    return len(kept).to_bytes(_HEAD, "little") + rice.write(np.diff(listed, prepend=-1) - 1)


def decode(data: memoryview, size: int) -> Places:
    """Positions (n,), ascending.

    Raises:
        WireError: the bytes are not positions in a vector of this size.
    """
    n = int.from_bytes(data[:_HEAD], "little")
    if len(data) < _HEAD or n > size:
        raise WireError(f"{len(data)} bytes for {n} positions in {size} elements")
    gaps = np.minimum(rice.read(data[_HEAD:], min(n, size - n)), size)  # no sum is too large for a number
    listed = np.cumsum(gaps + 1) - 1
    if (listed >= size).any():
        raise WireError(f"a position is not one of {size}")
    there = np.full(size, 2 * n > size)
    there[listed] ^= True
    return places_of(there)
