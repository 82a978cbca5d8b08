"""Code books: which label stands for which meaning, in agreement or in conflict from book to book."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from capfl.errors import ConfigError
from capfl.rng import stream
from capfl.types import ClientId, Item

CLUSTERS = 2  # of clients with a code book each, for the partition ``conflict``


def codebooks(n_books: int, n_codes: int, conflict: float, seed: int) -> np.ndarray:
    """Permutations of the codes, one a row: entry (b, i) is the code that book b gives to meaning i.

    All books start from one random permutation. ``round(conflict * n_codes)`` meanings (at least 2 for any
    conflict above 0, since one code alone cannot move) are chosen, and book b shifts their codes by b places
    in a cycle; the books agree on the others. With conflict 1 this is a cyclic Latin square: no two of up to n_codes
    books agree anywhere. With m meanings in conflict, 0 < m < n_books, only m books can differ pairwise, so that book b
    equals book b + m.
    """
    generator = stream(seed, "codebooks", n_books, n_codes)
    base = generator.permutation(n_codes)
    moved = min(n_codes, max(2, round(conflict * n_codes))) if conflict > 0 else 0
    places = generator.permutation(n_codes)[:moved]
    books = np.tile(base, (n_books, 1))
    for book in range(n_books):
        books[book, places] = base[np.roll(places, -book)]
    return books


def relabel(items: Sequence[Item], parts: Mapping[ClientId, Sequence[int]], seed: int) -> list[Item]:
    """Conflicting labels: the same text, another label at every second client.

    Of the sorted client ids the first, third, ... keep their labels (cluster 0); the others (cluster 1) have each
    label replaced by another one, all by the same code book. The fields ``label`` and ``cluster`` follow. Items of no
    client stay as they are.

    Raises:
        ConfigError: some items are no label task, or there is one client.
    """
    odd = [item for item in items if item.listed or not item.choices]
    if odd:
        raise ConfigError(
            f"partition.kind conflict: {len(odd)} of {len(items)} items are no label task, such as "
            f"{odd[0].question!r:.50}; use data of text and label, clinc150 or helpdesk, or another kind"
        )
    if len(parts) < CLUSTERS:
        raise ConfigError(
            f"partition.kind conflict: a single client has no other to disagree with; give {CLUSTERS} or more"
        )
    books = {n: codebooks(CLUSTERS, n, 1.0, seed) for n in {len(item.choices) for item in items}}
    books = {n: book[:, np.argsort(book[0])] for n, book in books.items()}  # cluster 0 keeps its labels
    changed = list(items)
    for number, client in enumerate(sorted(parts)):
        cluster = number % CLUSTERS
        for index in parts[client]:
            item = items[index]
            answer = int(books[len(item.choices)][cluster, item.answer])
            fields = {**item.fields, "label": item.choices[answer], "cluster": str(cluster)}
            changed[index] = replace(item, answer=answer, fields=fields)
    return changed
