"""What a client trains on, what it validates on and what it is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from capfl.config.data import PartitionConfig
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
    copies of each other stay in one part: otherwise the test would ask for what was learnt by heart. So do items with
    one value of the field ``config.keep_together``; then shares are met as far as whole groups allow.

    Raises:
        DataError: the client has fewer different items than parts, or items that lack the field.
    """
    copies = copies_of(items, indices)
    least = 3 if config.validation > 0 else 2
    if field := config.keep_together:
        copies = _joined(items, copies, field, client)
        if len(copies) < least:
            raise DataError(
                f"client {client!r} has items of {len(copies)} {field}, which partition.keep_together never "
                f"splits: too few for {least} parts; add data or leave partition.keep_together out"
            )
    if len(copies) < least:
        different = f", of which {len(copies)} are different" if len(copies) < len(indices) else ""
        raise DataError(
            f"client {client!r} has {len(indices)} items{different}, too few for {least} parts; "
            "add different rows or use fewer clients"
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


def _joined(items: Sequence[Item], copies: Sequence[list[int]], field: str, client: ClientId) -> list[list[int]]:
    """Groups of copies that share a value of the field as one group, in the order of their first."""
    whole: list[tuple[set[str], list[int]]] = []
    for group in copies:
        lacking = [k for k in group if field not in items[k].fields]
        if lacking:
            first = items[lacking[0]]
            there = ", ".join(sorted(first.fields.keys() - {"task"})) or "none"
            raise DataError(
                f"client {client!r}: partition.keep_together: {first.place or f'item {lacking[0]}'} "
                f"({first.question!r:.50}) lacks the field {field!r}; add it to all rows, or name a field that they "
                f"have: {there}"
            )
        values, members = {items[k].fields[field] for k in group}, group
        for other in [other for other in whole if other[0] & values]:  # copies with two values join both
            whole.remove(other)
            values, members = values | other[0], other[1] + members
        whole.append((values, members))
    return sorted((sorted(members) for _, members in whole), key=min)


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
