"""What a client trains on, what it validates on and what it is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capfl.config.schema import PartitionConfig
from capfl.errors import DataError
from capfl.rng import stream
from capfl.types import ClientId


@dataclass(frozen=True)
class Split:
    """Three disjoint lists of indices, each in ascending order."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split(indices: Sequence[int], config: PartitionConfig, seed: int, client: ClientId) -> Split:
    """Divide one client's indices at random by ``config.validation`` and ``config.test``.

    Shares are rounded, but every part gets at least one item (validation only if its share is above 0).

    Raises
    ------
    DataError
        The client has fewer items than parts.
    """
    least = 3 if config.validation > 0 else 2
    if len(indices) < least:
        raise DataError(
            f"client {client!r} has {len(indices)} items, too few for {least} parts; "
            "raise partition.min_items or use fewer clients"
        )
    n_test = max(1, round(config.test * len(indices)))
    n_validation = max(1, round(config.validation * len(indices))) if config.validation > 0 else 0
    while n_test + n_validation >= len(indices):  # rounding up ate the training items of a small client
        n_test, n_validation = (n_test - 1, n_validation) if n_test > n_validation else (n_test, n_validation - 1)
    order = [indices[k] for k in stream(seed, "split", client).permutation(len(indices))]
    cut = n_test + n_validation
    return Split(sorted(order[cut:]), sorted(order[n_test:cut]), sorted(order[:n_test]))
