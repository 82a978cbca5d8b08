"""What a client trains on, what it validates on and what it is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capfl.config.schema import PartitionConfig
from capfl.errors import DataError
from capfl.rng import stream
from capfl.types import ClientId, Item


@dataclass(frozen=True)
class Split:
    """Three disjoint lists of indices, each in ascending order."""

    train: list[int]
    validation: list[int]
    test: list[int]

    @property
    def all(self) -> list[int]:
        return self.train + self.validation + self.test


def split(items: Sequence[Item], indices: Sequence[int], config: PartitionConfig, seed: int, client: ClientId) -> Split:
    """Divide one client's indices into ``items`` at random by ``config.validation`` and ``config.test``.

    Shares are rounded, but every part gets at least one item (validation only if its share is above 0). Items that are
    copies of each other stay in one part: otherwise the test would ask for what was learnt by heart.

    Raises:
        DataError: the client has fewer different items than parts.
    """
    copies = copies_of(items, indices)
    least = 3 if config.validation > 0 else 2
    if len(copies) < least:
        different = f", of which {len(copies)} are different" if len(copies) < len(indices) else ""
        raise DataError(
            f"client {client!r} has {len(indices)} items{different}, too few for {least} parts; "
            "add data, raise partition.min_items or use fewer clients"
        )
    n_test = max(1, round(config.test * len(indices)))
    n_validation = max(1, round(config.validation * len(indices))) if config.validation > 0 else 0
    while n_test + n_validation >= len(indices):  # rounding up ate the training items of a small client
        n_test, n_validation = (n_test - 1, n_validation) if n_test > n_validation else (n_test, n_validation - 1)
    order = [copies[k] for k in stream(seed, "split", client).permutation(len(copies))]
    test, order = _take(order, n_test, leave=least - 1)
    validation, order = _take(order, n_validation, leave=1)
    return Split(sorted(k for group in order for k in group), sorted(validation), sorted(test))


def copies_of(items: Sequence[Item], indices: Sequence[int]) -> list[list[int]]:
    """The indices in groups of equal text and answer, in the order of their first."""
    groups: dict[object, list[int]] = {}
    for k in indices:
        item = items[k]
        content = (item.question, item.choices, item.answer, item.completion, item.messages, item.given)
        groups.setdefault(content, []).append(k)
    return list(groups.values())


def _take(order: Sequence[list[int]], wanted: int, leave: int) -> tuple[list[int], list[list[int]]]:
    """At most ``wanted`` indices in whole groups, but one group at least, such that ``leave`` groups are left."""
    taken: list[int] = []
    rest: list[list[int]] = []
    free = len(order) - leave
    for group in order:
        if free > 0 and len(taken) + len(group) <= wanted:
            taken += group
            free -= 1
        else:
            rest.append(group)
    if wanted and not taken:
        taken = min(rest, key=len)
        rest.remove(taken)
    return taken, rest
