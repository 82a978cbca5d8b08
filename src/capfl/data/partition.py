"""Which client holds which items. Clients are disjoint; all randomness comes from the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from capfl.config.schema import PartitionConfig
from capfl.data.names import group_names, numbered
from capfl.data.quotas import counts, cut, equal
from capfl.errors import ConfigError, DataError
from capfl.rng import stream
from capfl.types import ClientId, Item

DEFAULT_CLIENTS = 10
MISSING_SHOWN = 5


def partition(items: Sequence[Item], config: PartitionConfig, seed: int) -> dict[ClientId, list[int]]:
    """Indices into ``items`` of every client, ascending, in the order of the client ids.

    ``iid`` deals at random; ``dirichlet`` draws each value's shares of the clients; ``by:FIELD`` keeps natural
    groups together, ``by_task`` data sets or files; ``conflict`` deals at random, for ``relabel`` to change the
    labels. Every item goes to one client, unless ``max_items`` cuts some off.

    Raises:
        ConfigError: a number of clients, a field or an option that does not go with the kind or the data.
        DataError: too few items for the clients, or clients with fewer than ``min_items`` (all are listed).
    """
    if config.max_items is not None and config.max_items < config.min_items:
        raise ConfigError(
            f"partition.max_items {config.max_items} is below partition.min_items {config.min_items}; "
            "raise the first or lower the second"
        )
    if not items:
        raise DataError("there are no items to share out; check data.sets and data.split")
    kind = "by:task" if config.kind == "by_task" else config.kind
    kind, _, field = kind.partition(":")
    name = f"by:{field}" if kind == "by" else kind  # a Dirichlet draw does not depend on the field's name
    generator = stream(seed, "partition", name)
    if kind == "by":
        parts = _groups(items, config, field, generator)
    else:
        n_clients = config.clients or DEFAULT_CLIENTS
        _enough(len(items), n_clients)
        if kind == "dirichlet":
            pieces = _dirichlet(items, field or "label", n_clients, config.alpha, generator)
        else:
            pieces = cut(generator.permutation(len(items)), equal(n_clients, len(items)))
        parts = dict(zip(numbered(n_clients), pieces, strict=True))
    if config.max_items is not None:
        cap = stream(seed, "partition cap", name)
        parts = {client: cap.permutation(part)[: config.max_items] for client, part in parts.items()}
    _large_enough(parts, config)
    return {client: sorted(int(k) for k in parts[client]) for client in sorted(parts)}


def field_values(items: Sequence[Item], field: str) -> list[str]:
    """The value of one field of every item.

    Raises:
        ConfigError: no item has the field. Lists the fields that there are.
        DataError: some items lack it.
    """
    missing = [k for k, item in enumerate(items) if field not in item.fields]
    if len(missing) == len(items):
        there = sorted({name for item in items for name in item.fields} - {"task"})
        raise ConfigError(
            f"partition.kind: no item has the field {field!r}, so who holds what is not known; give one file for each "
            f"client, or deal the items out: {_kinds(there)}"
        )
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


def _kinds(fields: Sequence[str]) -> str:
    by = [f"--partition.kind by:{name}" for name in fields]
    return " or ".join(["--partition.kind iid --partition.clients 10", *by])


def _enough(n_items: int, n_clients: int) -> None:
    if n_clients > n_items:
        raise DataError(f"{n_clients} clients cannot share {n_items} items; lower partition.clients or add data")


def _large_enough(parts: dict[ClientId, np.ndarray], config: PartitionConfig) -> None:
    small = {client: len(part) for client, part in parts.items() if len(part) < config.min_items}
    if small:
        listed = ", ".join(f"{client} ({size})" for client, size in sorted(small.items()))
        remedy = "raise partition.alpha, " if config.kind.startswith("dirichlet") else ""
        raise DataError(
            f"{len(small)} of {len(parts)} clients have fewer than partition.min_items = {config.min_items} items: "
            f"{listed}; {remedy}use fewer clients, add data or lower partition.min_items"
        )


# -- the kinds -----------------------------------------------------------------------------------


def _dirichlet(
    items: Sequence[Item], field: str, n_clients: int, alpha: float, generator: np.random.Generator
) -> list[np.ndarray]:
    """Label skew as Hsu et al. 2019 draw it: every value is dealt out by shares of its own."""
    names, value = np.unique(field_values(items, field), return_inverse=True)
    pools = [generator.permutation(np.flatnonzero(value == v)) for v in range(len(names))]
    shares = generator.dirichlet(np.full(n_clients, alpha), size=len(names))
    pieces = [cut(pool, counts(row, len(pool))) for pool, row in zip(pools, shares, strict=True)]
    return [np.concatenate([piece[client] for piece in pieces]) for client in range(n_clients)]


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
        parts.update(zip(ids, cut(pool, equal(each[v], len(pool))), strict=True))
    return parts
