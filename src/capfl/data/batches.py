"""Batches of items: of about equal length, so that little is padded; or by chance alone, for privacy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capfl.rng import Draw, stream
from capfl.types import ClientId

MEGA = 16  # batches that are sorted by length together: enough to save padding, few enough to stay random


def batches(lengths: Sequence[int], batch_size: int, seed: int, client: ClientId, epoch: int) -> list[np.ndarray]:
    """One epoch: every index of ``lengths`` once, in batches of ``batch_size`` (one may be smaller)."""
    generator = stream(seed, "batches", client, epoch)
    size = np.asarray(lengths)
    order = generator.permutation(len(size))
    made: list[np.ndarray] = []
    for start in range(0, len(order), MEGA * batch_size):
        mega = order[start : start + MEGA * batch_size]
        mega = mega[np.argsort(size[mega], kind="stable")]
        made += [mega[first : first + batch_size] for first in range(0, len(mega), batch_size)]
    return [made[k] for k in generator.permutation(len(made))]


def by_chance(number: int, share: float, draw: Draw) -> np.ndarray:
    """A batch that each of so many indices is in with probability ``share``, whoever else is (Poisson sampling)."""
    if share >= 1:
        return np.arange(number)
    return np.flatnonzero(np.frombuffer(draw(8 * number), "<u8") < np.uint64(share * 2**64))
