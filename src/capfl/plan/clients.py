"""Who would take part in a run, from its data or, without them, from its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capfl.config import Config
from capfl.config.schema import is_path
from capfl.data import Split, load_items, share_out
from capfl.data.load import task_of
from capfl.data.names import numbered
from capfl.data.partition import DEFAULT_CLIENTS
from capfl.errors import DataError
from capfl.types import ClientId, Item


@dataclass(frozen=True)
class Clients:
    ids: Sequence[ClientId]  # sorted
    source: str  # where their number comes from, in words
    items: Sequence[Item] = ()
    splits: Mapping[ClientId, Split] = field(default_factory=dict)
    missing: str = ""  # why the data could not be loaded; empty if they were


def find_clients(config: Config) -> Clients:
    """The clients of a run.

    Raises:
        ConfigError: a data set or a partition that does not exist.
        DataError: the data are here, but cannot be read or shared out as the config asks.
    """
    try:
        items = load_items(config.data, config.seed)
    except DataError as error:
        files = [name for name in config.data.sets if is_path(name)]
        if any(Path(name).exists() for name in files):
            raise
        number = config.partition.clients
        if config.partition.kind == "by_task" and not number:
            ids = sorted(task_of(name) for name in config.data.sets)
            return Clients(ids, "the names in data.sets, as the data are not here", missing=str(error))
        source = "partition.clients" if number else f"the default of {DEFAULT_CLIENTS}, as the data are not here"
        return Clients(numbered(number or DEFAULT_CLIENTS), source, missing=str(error))
    items, splits = share_out(items, config.partition, config.seed)
    return Clients(sorted(splits), "the data", items, splits)
