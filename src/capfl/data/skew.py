"""Label skew by Dirichlet draws (Hsu et al. 2019): which client gets how many items of each value."""

from __future__ import annotations

import numpy as np

from capfl.data.quotas import counts


def follow(shares: np.ndarray, available: np.ndarray) -> np.ndarray:
    """Deal value v out in the proportions of row v of ``shares``; client sizes are whatever results.

    Returns the numbers of items, (value, client); row v sums to ``available[v]``.
    """
    return np.stack([counts(row, int(n)) for row, n in zip(shares, available, strict=True)])


def fill(shares: np.ndarray, available: np.ndarray, quotas: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Deal as ``follow`` does, but give client k exactly ``quotas[k]`` items.

    Clients fill up one after the other, in random order, from what is left, with their own preferences:
    the number of a value's items times the client's share in it. A client whose values have run out takes
    from the others in proportion to what is left.
    """
    left = available.astype(np.int64).copy()
    dealt = np.zeros(shares.shape, dtype=np.int64)
    for client in generator.permutation(len(quotas)):
        weights = shares[:, client] * available
        while (need := int(quotas[client] - dealt[:, client].sum())) > 0:
            usable = np.where(left > 0, weights, 0.0)
            usable = usable if usable.sum() > 0 else left.astype(float)
            taken = np.minimum(generator.multinomial(need, usable / usable.sum()), left)
            dealt[:, client] += taken
            left -= taken
    return dealt
