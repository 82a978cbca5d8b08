"""Client ids: short, sortable and safe as names of files on every system."""

from __future__ import annotations

import re
from collections.abc import Sequence

from capfl.types import ClientId

LONGEST = 48  # characters of a group's value that an id keeps


def numbered(n_clients: int) -> list[ClientId]:
    """``00``, ``01``, ...: at least two digits, and as many as the last number has."""
    width = max(2, len(str(n_clients - 1)))
    return [f"{k:0{width}d}" for k in range(n_clients)]


def group_names(values: Sequence[str], counts: Sequence[int]) -> list[list[ClientId]]:
    """As many ids for every value as ``counts`` says: the value, made safe, with ``-1``, ``-2``, ... if several.

    Values that become equal when made safe (or differ in case only) get ``.2``, ``.3``, ... behind them.
    """
    taken: set[str] = set()
    names: list[list[ClientId]] = []
    width = len(str(max(counts, default=1)))
    for value, each in zip(values, counts, strict=True):
        stem = safe = re.sub(r"[^A-Za-z0-9_.-]", "_", value).lstrip(".-")[:LONGEST] or "_"
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
