"""Concept shift between clusters of clients: the same text, another label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from capfl.config.schema import PartitionConfig
from capfl.data.codebook import codebooks
from capfl.errors import ConfigError
from capfl.types import ClientId, Item


def relabel(
    items: Sequence[Item], parts: Mapping[ClientId, Sequence[int]], config: PartitionConfig, seed: int
) -> list[Item]:
    """Items with the labels of their client's cluster, for the kind ``conflict``; unchanged for other kinds.

    Client k of the sorted ids belongs to cluster ``k mod clusters``. Cluster 0 keeps its labels; cluster c
    replaces label a by ``codebook[c][a]``, where ``config.conflict`` says for how many labels the clusters
    disagree. The fields ``label`` and ``cluster`` follow. Items of no client stay as they are.

    Raises
    ------
    ConfigError
        Some items are no label task, or there are more clusters than clients.
    DataError
        Conflict 1 with more clusters than labels.
    """
    if config.kind != "conflict":
        return list(items)
    odd = [item for item in items if item.listed or not item.choices]
    if odd:
        raise ConfigError(
            f"partition.kind conflict: {len(odd)} of {len(items)} items are no label task, such as "
            f"{odd[0].question!r:.50}; use data of text and label, clinc150 or helpdesk, or another kind"
        )
    if config.clusters > len(parts):
        raise ConfigError(
            f"partition.clusters is {config.clusters} and there are {len(parts)} clients; "
            "lower partition.clusters or raise partition.clients"
        )
    books = {n: _books(n, config, seed) for n in {len(item.choices) for item in items}}
    changed = list(items)
    for number, client in enumerate(sorted(parts)):
        cluster = number % config.clusters
        for index in parts[client]:
            item = items[index]
            answer = int(books[len(item.choices)][cluster, item.answer])
            fields = {**item.fields, "label": item.choices[answer], "cluster": str(cluster)}
            changed[index] = replace(item, answer=answer, fields=fields)
    return changed


def _books(n_labels: int, config: PartitionConfig, seed: int) -> np.ndarray:
    """Code books whose row 0 is the identity: labels have meanings, and one cluster keeps them."""
    books = codebooks(config.clusters, n_labels, config.conflict, seed)
    return books[:, np.argsort(books[0])]
