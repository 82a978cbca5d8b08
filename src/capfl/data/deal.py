"""Who holds what: of all clients from everybody's data, or of one client from its own alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capfl.config.data import DataConfig, PartitionConfig, is_hub
from capfl.data.codebooks import relabel
from capfl.data.load import check_names, load_held, load_items, load_set, task_of
from capfl.data.partition import group_names, partition
from capfl.data.sources import DATASETS
from capfl.data.split import Split, copies_of, split
from capfl.errors import ConfigError, DataError, number
from capfl.types import ClientId, Item


def deal(data: DataConfig, shares: PartitionConfig, seed: int) -> tuple[list[Item], dict[ClientId, Split]]:
    """All items of a run, and every client's split of them.

    Raises:
        ConfigError, DataError: as ``load_items``, ``partition``, ``relabel`` and ``split``.
    """
    return share_out(load_items(data, seed), shares, seed)


def deal_rows(
    clients: Mapping[ClientId, Iterable[Any] | Path], data: DataConfig, shares: PartitionConfig, seed: int
) -> tuple[list[Item], dict[ClientId, Split]]:
    """As ``deal``, of rows in memory: the same items, splits and ids as from files CLIENT.jsonl with the same rows.

    Args:
        clients: rows of each client, in one of the formats of files: dicts, a ``datasets.Dataset``, or the path of a
            file. An id becomes safe as the name of a file: letters, digits, ``_``, ``.`` and ``-``.
        data: its ``limit``, ``scoring`` and ``labels`` count; ``sets``, ``dir`` and ``split`` do not.
        shares: its ``kind`` does not count, because the clients say who holds what.

    Raises:
        ConfigError: there are no clients, or another number of them is asked for.
        DataError: rows cannot be used; says client, row (from 1) and field.
    """
    if shares.clients not in (None, len(clients)):
        raise ConfigError(
            f"partition.clients is {shares.clients}, but there are rows for {len(clients)} clients; leave it out"
        )
    apart = shares.model_copy(update={"kind": "by_task"})
    return share_out(load_held({str(client): rows for client, rows in clients.items()}, data, seed), apart, seed)


def share_out(items: Sequence[Item], shares: PartitionConfig, seed: int) -> tuple[list[Item], dict[ClientId, Split]]:
    """As ``deal``, of items that have been read."""
    parts = partition(items, shares, seed)
    items = relabel(items, parts, seed) if shares.kind == "conflict" else list(items)
    return items, {client: split(items, own, shares, seed, client) for client, own in parts.items()}


def remarks(
    data: DataConfig | None, shares: PartitionConfig, items: Sequence[Item], splits: Mapping[ClientId, Split]
) -> list[str]:
    """What a user should be told before a run starts: which data it takes, and how many of its rows are copies.

    Args:
        data: where the items are from. None: from rows in memory.
    """
    if data is None:
        source = "rows in memory"
    else:
        public = [name for name in data.sets if name in DATASETS or is_hub(name)]
        where = f" (split {data.split}, from {data.dir or 'the Hugging Face Hub'})" if public else ""
        source = f"{', '.join(data.sets)}{where}, partition.kind {shares.kind}"
    said = [f"data: {source}; {len(items)} items at {number(len(splits), 'client')}"]
    doubled = {client: len(own.all) - len(copies_of(items, own.all)) for client, own in sorted(splits.items())}
    if any(doubled.values()):
        most = max(doubled, key=lambda client: doubled[client])
        said.append(
            f"WARNING: {sum(doubled.values())} items are exact copies of another item of their client (most at {most}: "
            f"{doubled[most]} of {len(splits[most].all)}); the split keeps copies together"
        )
    return said


def clients_of(data: DataConfig, shares: PartitionConfig) -> dict[ClientId, str]:
    """The clients of a run in which every data set is one client's, sorted, each with its set: no data are read.

    Raises:
        ConfigError: who holds what depends on everybody's data.
    """
    check_names(data.sets)
    needs = ""
    if shares.kind != "by_task":
        needs = f"partition.kind {shares.kind} deals out the data of all; use by_task, with one file a client"
    elif shares.clients not in (None, len(data.sets)):
        needs = f"partition.clients {shares.clients} cuts up {len(data.sets)} data sets; leave it out"
    elif shares.max_items is not None:
        needs = "partition.max_items draws for all clients in turn; use data.limit, which draws for each data set"
    if needs:
        raise ConfigError(f"a client with only its own data cannot find its part: {needs}")
    tasks = {task_of(name): name for name in data.sets}
    ordered = sorted(tasks)  # as ``partition`` names its groups
    ids = group_names(ordered, [1] * len(ordered))
    return {client: tasks[task] for (client,), task in sorted(zip(ids, ordered, strict=True))}


def deal_one(
    data: DataConfig, shares: PartitionConfig, seed: int, client: ClientId, path: Path | None = None
) -> tuple[list[Item], dict[ClientId, Split]]:
    """What ``deal`` would give a client if it had everybody's data: the same items in the same order, the same split.

    Args:
        path: where the client's file is, if it is not where ``data.sets`` says.

    Raises:
        ConfigError: as ``clients_of``, or there is no such client.
        DataError: the data cannot be read, or are too few.
    """
    sets = clients_of(data, shares)
    if client not in sets:
        raise ConfigError(f"there is no client {client!r} in this run; its clients are {', '.join(sets)}")
    items = load_set(sets[client], data, seed, path)
    if len(items) < shares.min_items:
        raise DataError(
            f"client {client!r} has {len(items)} items, fewer than partition.min_items = {shares.min_items}; "
            "add data or lower partition.min_items"
        )
    return items, {client: split(items, range(len(items)), shares, seed, client)}


def digest(items: Sequence[Item], splits: Mapping[ClientId, Split]) -> str:
    """A name for data and who holds them: other data have another one."""
    found = hashlib.blake2b(digest_size=16)
    for item in items:
        content = item.question, item.choices, item.answer, item.completion, item.messages, item.given
        found.update(repr(content).encode())
    found.update(json.dumps({client: vars(own) for client, own in splits.items()}).encode())
    return found.hexdigest()
