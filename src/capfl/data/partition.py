"""Which client holds which items. Clients are disjoint; all randomness comes from the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capfl.config.schema import PartitionConfig
from capfl.data import skew
from capfl.data.names import group_names, numbered
from capfl.data.quotas import counts, cut, sizes
from capfl.data.relabel import relabel
from capfl.errors import ConfigError, DataError
from capfl.rng import stream
from capfl.types import ClientId, Item

__all__ = ["field_values", "partition", "relabel"]

DEFAULT_CLIENTS = 10
MISSING_SHOWN = 5


def partition(items: Sequence[Item], config: PartitionConfig, seed: int) -> dict[ClientId, list[int]]:
    """Indices into ``items`` of every client, ascending, in the order of the client ids.

    ``iid`` deals at random; ``dirichlet`` draws each value's shares of the clients; ``by:FIELD`` keeps natural
    groups together; ``shards`` sorts by the field and deals pieces; ``conflict`` deals at random, for
    ``relabel`` to change the labels. Every item goes to one client, unless ``max_items`` cuts some off.

    Raises
    ------
    ConfigError
        A number of clients, a field or an option that does not go with the kind or the data.
    DataError
        Too few items for the clients, or clients with fewer than ``min_items`` (all are listed).
    """
    if config.max_items is not None and config.max_items < config.min_items:
        raise ConfigError(
            f"partition.max_items {config.max_items} is below partition.min_items {config.min_items}; "
            "raise the first or lower the second"
        )
    if not items:
        raise DataError("there are no items to share out; check data.sets and data.split")
    kind = "by:task" if config.kind == "by_task" else config.kind
    generator = stream(seed, "partition", kind)
    if kind.startswith("by:"):
        parts = _groups(items, config, kind.removeprefix("by:"), generator)
    else:
        n_clients = config.clients or DEFAULT_CLIENTS
        _enough(len(items), n_clients)
        pieces = _DEALERS[kind](items, n_clients, config, generator)
        parts = dict(zip(numbered(n_clients), pieces, strict=True))
    if config.max_items is not None:
        cap = stream(seed, "partition cap", kind)
        parts = {client: cap.permutation(part)[: config.max_items] for client, part in parts.items()}
    _large_enough(parts, config)
    return {client: sorted(int(k) for k in parts[client]) for client in sorted(parts)}


def field_values(items: Sequence[Item], field: str) -> list[str]:
    """The value of one field of every item.

    Raises
    ------
    ConfigError
        No item has the field. Lists the fields that there are.
    DataError
        Some items lack it.
    """
    missing = [k for k, item in enumerate(items) if field not in item.fields]
    if len(missing) == len(items):
        there = ", ".join(sorted({name for item in items for name in item.fields})) or "none"
        raise ConfigError(f"partition: no item has the field {field!r}; choose from {there}")
    if missing:
        some = "; ".join(
            f"item {k} of task {items[k].fields.get('task', '?')!r}: {items[k].question!r:.50}"
            for k in missing[:MISSING_SHOWN]
        )
        raise DataError(
            f"partition: {len(missing)} of {len(items)} items lack the field {field!r} ({some}); "
            "add it to their rows or divide by another field"
        )
    return [item.fields[field] for item in items]


def _enough(n_items: int, n_clients: int) -> None:
    if n_clients > n_items:
        raise DataError(f"{n_clients} clients cannot share {n_items} items; lower partition.clients or add data")


def _large_enough(parts: dict[ClientId, np.ndarray], config: PartitionConfig) -> None:
    small = {client: len(part) for client, part in parts.items() if len(part) < config.min_items}
    if small:
        listed = ", ".join(f"{client} ({size})" for client, size in sorted(small.items()))
        remedy = {"dirichlet": "raise partition.alpha, ", "shards": "raise partition.shards, "}.get(config.kind, "")
        raise DataError(
            f"{len(small)} of {len(parts)} clients have fewer than partition.min_items = {config.min_items} items: "
            f"{listed}; {remedy}use fewer clients, add data or lower partition.min_items"
        )


# -- the kinds -----------------------------------------------------------------------------------


def _iid(
    items: Sequence[Item], n_clients: int, config: PartitionConfig, generator: np.random.Generator
) -> list[np.ndarray]:
    order = generator.permutation(len(items))
    return cut(order, sizes(n_clients, len(items), config.size_sigma, generator))


def _dirichlet(
    items: Sequence[Item], n_clients: int, config: PartitionConfig, generator: np.random.Generator
) -> list[np.ndarray]:
    names, value = np.unique(field_values(items, config.field), return_inverse=True)
    pools = [generator.permutation(np.flatnonzero(value == v)) for v in range(len(names))]
    available = np.array([len(pool) for pool in pools])
    shares = generator.dirichlet(np.full(n_clients, config.alpha), size=len(names))
    if config.size_sigma > 0:
        quotas = sizes(n_clients, len(items), config.size_sigma, generator)
        dealt = skew.fill(shares, available, quotas, generator)
    else:
        dealt = skew.follow(shares, available)
    pieces = [cut(pool, row) for pool, row in zip(pools, dealt, strict=True)]
    return [np.concatenate([piece[client] for piece in pieces]) for client in range(n_clients)]


def _shards(
    items: Sequence[Item], n_clients: int, config: PartitionConfig, generator: np.random.Generator
) -> list[np.ndarray]:
    if config.size_sigma > 0:
        raise ConfigError("partition.size_sigma has no effect on shards, which are equal in size; leave it at 0")
    n_shards = n_clients * config.shards
    if n_shards > len(items):
        raise DataError(
            f"{n_clients} clients of {config.shards} shards need {n_shards} items and there are {len(items)}; "
            "lower partition.shards or partition.clients"
        )
    shuffled = generator.permutation(len(items))  # so that ties in the field are in no order
    values = np.array(field_values(items, config.field))[shuffled]
    ordered = shuffled[np.argsort(values, kind="stable")]
    pieces = cut(ordered, counts(np.ones(n_shards), len(items)))
    hands = generator.permutation(n_shards).reshape(n_clients, config.shards)
    return [np.concatenate([pieces[k] for k in hand]) for hand in hands]


_DEALERS = {"iid": _iid, "conflict": _iid, "dirichlet": _dirichlet, "shards": _shards}


def _groups(
    items: Sequence[Item], config: PartitionConfig, field: str, generator: np.random.Generator
) -> dict[ClientId, np.ndarray]:
    names, value = np.unique(field_values(items, field), return_inverse=True)
    n_clients = config.clients or len(names)
    if n_clients < len(names):
        raise ConfigError(
            f"partition.clients is {n_clients}, but {field} has {len(names)} values, and by:{field} keeps them apart; "
            f"give at least {len(names)}, or leave it out for one client a value"
        )
    _enough(len(items), n_clients)
    each = [n_clients // len(names) + (v < n_clients % len(names)) for v in range(len(names))]
    parts: dict[ClientId, np.ndarray] = {}
    for v, ids in enumerate(group_names(names.tolist(), each)):
        pool = generator.permutation(np.flatnonzero(value == v))
        parts.update(zip(ids, cut(pool, sizes(each[v], len(pool), config.size_sigma, generator)), strict=True))
    return parts
