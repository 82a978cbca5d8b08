"""Conflicting labels: the same text, another label at every second client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from capfl.config.schema import PartitionConfig
from capfl.data.codebook import codebooks
from capfl.errors import ConfigError
from capfl.types import ClientId, Item

CLUSTERS = 2


def relabel(
    items: Sequence[Item], parts: Mapping[ClientId, Sequence[int]], config: PartitionConfig, seed: int
) -> list[Item]:
    """Items with the labels of their client's code book, for the kind ``conflict``; unchanged for other kinds.

    Of the sorted client ids the first, third, ... keep their labels (cluster 0); the others (cluster 1) have each
    label replaced by another one, all by the same code book. The fields ``label`` and ``cluster`` follow. Items of no
    client stay as they are.

    Raises:
        ConfigError: some items are no label task, or there is one client.
    """
    if config.kind != "conflict":
        return list(items)
    odd = [item for item in items if item.listed or not item.choices]
    if odd:
        raise ConfigError(
            f"partition.kind conflict: {len(odd)} of {len(items)} items are no label task, such as "
            f"{odd[0].question!r:.50}; use data of text and label, clinc150 or helpdesk, or another kind"
        )
    if len(parts) < CLUSTERS:
        raise ConfigError(f"partition.kind conflict: one client has nobody to disagree with; give {CLUSTERS} or more")
    books = {n: _books(n, seed) for n in {len(item.choices) for item in items}}
    changed = list(items)
    for number, client in enumerate(sorted(parts)):
        cluster = number % CLUSTERS
        for index in parts[client]:
            item = items[index]
            answer = int(books[len(item.choices)][cluster, item.answer])
            fields = {**item.fields, "label": item.choices[answer], "cluster": str(cluster)}
            changed[index] = replace(item, answer=answer, fields=fields)
    return changed


def _books(n_labels: int, seed: int) -> np.ndarray:
    """Code books whose row 0 is the identity: labels have meanings, and one cluster keeps them."""
    books = codebooks(CLUSTERS, n_labels, 1.0, seed)
    return books[:, np.argsort(books[0])]
