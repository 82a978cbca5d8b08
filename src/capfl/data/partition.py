"""Which client holds which items. Clients are disjoint; all randomness comes from the seed."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from capfl.config.data import PartitionConfig
from capfl.data.labels import variants
from capfl.errors import ConfigError, DataError
from capfl.rng import stream
from capfl.types import ClientId, Item

DEFAULT_CLIENTS = 10
MISSING_SHOWN = 5
LIKELY = 10  # items of a client, at least, where a number of clients is proposed
LONGEST = 48  # characters of a group's value that an id keeps


def partition(items: Sequence[Item], config: PartitionConfig, seed: int) -> dict[ClientId, list[int]]:
    """Indices into ``items`` of every client, ascending, in the order of the client ids.

    ``iid`` deals at random; ``dirichlet`` draws each value's shares of the clients; ``by:FIELD`` keeps natural
    groups together, ``by_task`` data sets or files; ``conflict`` deals at random, for ``relabel`` to change the
    labels. Every item goes to one client, unless ``max_items`` cuts some off. Clients of one pool have equal shares of
    it or, with ``spread``, log-normal ones.

    Raises:
        ConfigError: a number of clients, a field or an option that does not go with the kind or the data.
        DataError: too few items for the clients, clients with fewer than ``min_items`` (all are listed), or values of
            the field that differ in case or spaces alone, and are likely one site.
    """
    if config.max_items is not None and config.max_items < config.min_items:
        raise ConfigError(
            f"partition.max_items {config.max_items} is below partition.min_items {config.min_items}; "
            "raise max_items or lower min_items"
        )
    if config.spread and config.kind.startswith("dirichlet"):
        raise ConfigError("partition.spread does not go with dirichlet: its sizes follow from alpha; set one of them")
    kind, _, field = config.kind.partition(":")
    name = {"by": f"by:{field}", "by_task": "by:task"}.get(kind, kind)  # a draw by shares has no name of a field in it
    generator = stream(seed, "partition", name)
    if kind in ("by", "by_task"):
        values = _field_values(items, field) if field else [item.source for item in items]
        if field and (found := variants(sorted(set(values)))):
            raise DataError(
                f"partition: the field {field!r} has {found[0]!r} and {found[1]!r}, which differ in case or spaces "
                "alone; write them alike, or as two names"
            )
        parts = _groups(values, config, generator)
    else:
        n_clients = config.clients or DEFAULT_CLIENTS
        _enough(len(items), n_clients)
        if kind == "dirichlet":
            pieces = _dirichlet(items, field or "label", n_clients, config.alpha, generator)
        else:
            pieces = cut(generator.permutation(len(items)), _shares(n_clients, config.spread, generator))
        parts = dict(zip(numbered(n_clients), pieces, strict=True))
    if config.max_items is not None:
        cap = stream(seed, "partition cap", name)
        parts = {client: cap.permutation(part)[: config.max_items] for client, part in parts.items()}
    if small := {client: len(part) for client, part in parts.items() if len(part) < config.min_items}:
        listed = ", ".join(f"{client} ({size})" for client, size in sorted(small.items()))
        remedy = "raise partition.alpha, " if kind == "dirichlet" else ""
        raise DataError(
            f"{len(small)} of {len(parts)} clients have fewer than partition.min_items = {config.min_items} items: "
            f"{listed}; {remedy}use fewer clients, add data or lower partition.min_items"
        )
    return {client: sorted(int(k) for k in parts[client]) for client in sorted(parts)}


def _enough(n_items: int, n_clients: int) -> None:
    if n_clients > n_items:
        raise DataError(f"{n_clients} clients cannot share {n_items} items; lower partition.clients or add data")


def _dirichlet(
    items: Sequence[Item], field: str, n_clients: int, alpha: float, generator: np.random.Generator
) -> list[np.ndarray]:
    """Label skew as Hsu et al. 2019 draw it: every value is dealt out by shares of its own."""
    names, value = np.unique(_field_values(items, field), return_inverse=True)
    pools = [generator.permutation(np.flatnonzero(value == v)) for v in range(len(names))]
    shares = generator.dirichlet(np.full(n_clients, alpha), size=len(names))
    pieces = [cut(pool, row) for pool, row in zip(pools, shares, strict=True)]
    return [np.concatenate([piece[client] for piece in pieces]) for client in range(n_clients)]


def _groups(
    values: Sequence[str], config: PartitionConfig, generator: np.random.Generator
) -> dict[ClientId, np.ndarray]:
    names, value = np.unique(values, return_inverse=True)
    n_clients = config.clients or len(names)
    if n_clients < len(names):
        raise ConfigError(
            f"partition.clients is {n_clients}, but {config.kind} keeps {len(names)} values apart; "
            f"give at least {len(names)}, or leave it out for one client a value"
        )
    _enough(len(values), n_clients)
    each = [n_clients // len(names) + (v < n_clients % len(names)) for v in range(len(names))]
    parts: dict[ClientId, np.ndarray] = {}
    for v, ids in enumerate(group_names(names.tolist(), each)):
        pool = generator.permutation(np.flatnonzero(value == v))
        parts.update(zip(ids, cut(pool, _shares(each[v], config.spread, generator)), strict=True))
    return parts


def _shares(n_clients: int, spread: float, generator: np.random.Generator) -> np.ndarray:
    """(n_clients,) positive weights: all 1, or log-normal with the standard deviation of their logarithms."""
    return generator.lognormal(0.0, spread, n_clients) if spread else np.ones(n_clients)


def _field_values(items: Sequence[Item], field: str) -> list[str]:
    """The value of one field of every item.

    Raises:
        ConfigError: no item has the field. Lists the fields that there are.
        DataError: some items lack it.
    """
    missing = [k for k, item in enumerate(items) if field not in item.fields]
    if len(missing) == len(items):
        there = sorted({f"by:{name}" for item in items for name in item.fields if name != "task"})
        clients = max(2, min(DEFAULT_CLIENTS, len(items) // LIKELY))
        kinds = " or ".join(f"--partition.kind {kind}" for kind in (f"iid --partition.clients {clients}", *there))
        raise ConfigError(
            f"partition.kind: no item has the field {field!r}, so it cannot decide which client has which "
            f"item; give one file for each client, or deal the items out: {kinds}"
        )
    if missing:
        some = ", ".join(items[k].place or f"item {k + 1}" for k in missing[:MISSING_SHOWN])
        raise DataError(
            f"partition: {len(missing)} of {len(items)} rows have no text or number in the field {field!r} "
            f"(first: {some}); fill it in or divide by another field"
        )
    return [item.fields[field] for item in items]


def cut(indices: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    """``indices`` (n,) in consecutive pieces, in proportion to ``shares``, by largest remainders."""
    exact = shares / shares.sum() * len(indices)
    sizes: np.ndarray = np.floor(exact).astype(np.int64)
    rest = len(indices) - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:rest]] += 1
    return np.split(indices, np.cumsum(sizes)[:-1])


# -- client ids: short, sortable and safe as names of files on every system ------------------------------


def numbered(n_clients: int) -> list[ClientId]:
    """``00``, ``01``, ...: at least two digits, and as many as the last number has."""
    width = max(2, len(str(n_clients - 1)))
    return [f"{k:0{width}d}" for k in range(n_clients)]


def _safe(character: str) -> str:
    letter = character.isalnum() or unicodedata.category(character)[0] == "M"  # marks are parts of letters
    return character if letter or character in "_.-" else "_"


def group_names(values: Sequence[str], counts: Sequence[int]) -> list[list[ClientId]]:
    """As many ids for every value as ``counts`` says: the value, made safe, with ``-1``, ``-2``, ... if several.

    Values that become equal when made safe (or differ in case only) get ``.2``, ``.3``, ... behind them.
    """
    taken: set[str] = set()
    names: list[list[ClientId]] = []
    width = len(str(max(counts, default=1)))
    for value, each in zip(values, counts, strict=True):
        stem = safe = "".join(map(_safe, unicodedata.normalize("NFKC", value))).lstrip(".-")[:LONGEST] or "_"
        again = 1
        while True:
            ids = [stem] if each == 1 else [f"{stem}-{k:0{width}d}" for k in range(1, each + 1)]
            if taken.isdisjoint(name.casefold() for name in ids):
                break
            again += 1
            stem = f"{safe}.{again}"
        taken.update(name.casefold() for name in ids)
        names.append(ids)
    return names
