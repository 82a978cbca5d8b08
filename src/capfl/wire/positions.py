"""Which elements of a message are there: Rice-coded gaps, tensor by tensor.

Each tensor's code lists what is rarer, the elements that are there or those that are not, so nothing is spent on a
dense tensor or an empty one, and at one half the code is a bitmap (a Rice code with k = 0 is just that).
"""

from __future__ import annotations

import numpy as np

from capfl.errors import WireError
from capfl.wire import rice
from capfl.wire.layout import Bools, Ints, Layout

_HEAD = 9  # bytes before the Rice-coded counts: their total, their parameter and their length


def encode(kept: Ints, layout: Layout) -> bytes:
    """Positions (n,), ascending, in the flat vector of ``layout``."""
    sizes = layout.sizes
    counts = np.diff(np.searchsorted(kept, np.append(layout.starts, layout.size)))
    surprise = rice.zigzag(counts - _expected(len(kept), layout))
    k = rice.best_k(int(surprise.sum()), len(surprise))
    head = rice.encode(surprise, np.full(len(surprise), k))

    there = np.zeros(layout.size, np.bool_)
    there[kept] = True
    listed = np.flatnonzero(there ^ _turned(counts, layout))
    n_listed = np.minimum(counts, sizes - counts)
    owner, first = np.repeat(np.arange(len(sizes)), n_listed), (np.cumsum(n_listed) - n_listed)[n_listed > 0]
    gaps = np.diff(listed, prepend=0) - 1
    gaps[first] = (listed - layout.starts[owner])[first]
    tail = rice.encode(gaps, _parameters(n_listed, sizes)[owner])
    return len(kept).to_bytes(4, "little") + bytes([k]) + len(head).to_bytes(4, "little") + head + tail


def decode(data: memoryview, layout: Layout) -> Ints:
    """Positions (n,), ascending.

    Raises:
        WireError: the bytes are not a set of positions in this layout.
    """
    if len(data) < _HEAD or data[4] > rice.MAX_K:
        raise WireError("positions are cut off")
    total, k, n_head = int.from_bytes(data[:4], "little"), data[4], int.from_bytes(data[5:_HEAD], "little")
    sizes = layout.sizes
    if total > layout.size or n_head > len(data) - _HEAD:
        raise WireError(f"{total} positions in {layout.size} elements, counted in {n_head} bytes")
    surprise = rice.unzigzag(rice.decode(data[_HEAD : _HEAD + n_head], np.full(len(sizes), k)))
    counts = _expected(total, layout) + surprise
    if (counts < 0).any() or (counts > sizes).any() or int(counts.sum()) != total:
        raise WireError("the tensors' numbers of positions do not fit their sizes")
    n_listed = np.minimum(counts, sizes - counts)
    owner = np.repeat(np.arange(len(sizes)), n_listed)
    first = np.cumsum(n_listed) - n_listed
    gaps = rice.decode(data[_HEAD + n_head :], _parameters(n_listed, sizes)[owner])
    steps = np.cumsum(gaps + 1)
    before = np.concatenate([np.zeros(1, np.int64), steps])[first]  # what earlier tensors have summed to
    within = steps - before[owner] - 1
    if len(within) and (within >= sizes[owner]).any():
        raise WireError("a position lies outside its tensor")
    there = _turned(counts, layout)
    there[within + layout.starts[owner]] ^= True
    return np.flatnonzero(there)


def _expected(total: int, layout: Layout) -> Ints:
    """What each tensor would have if all were equally dense."""
    return layout.sizes * total // max(1, layout.size)


def _turned(counts: Ints, layout: Layout) -> Bools:
    """Which elements are of tensors that are more than half full, and list what is not there; (size,)."""
    return np.repeat(2 * counts > layout.sizes, layout.sizes)


def _parameters(n_listed: Ints, sizes: Ints) -> Ints:
    """The Rice parameter of each tensor's gaps; both sides know what it follows from."""
    return np.array([rice.best_k(int(s - n), int(n)) for n, s in zip(n_listed, sizes, strict=True)], np.int64)
