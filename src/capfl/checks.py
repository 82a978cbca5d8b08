"""What can be wrong with a run and is seen without torch, which takes seconds to load."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capfl import metrics
from capfl.config import Config, load_config
from capfl.config.data import is_path
from capfl.config.methods import check_method, check_peers
from capfl.data import DEFAULT_CLIENTS, Split, deal, load_items, numbered, share_out, task_of
from capfl.data.tasks import check_tasks
from capfl.errors import CheckpointError, ConfigError, DataError
from capfl.files import in_the_way
from capfl.model.place import check_base
from capfl.types import ClientId, Item

Dealt = tuple[Sequence[Item], dict[ClientId, Split]]
"""Items, and each client's split of them."""


def checked_data(config: Config, any_method: bool) -> Dealt:
    """The data of a run that is to begin in this process, after all else that needs no torch has been checked.

    Args:
        any_method: the method may be one of the caller's own, whose names are not known yet.

    Raises:
        ConfigError: a name, a setting or a metric that there is not, or a folder that is in use.
        DataError: the data cannot be used.
        ModelError: the base model is not there.
    """
    if not any_method:
        check_method(config.method)
    free_folder(config)
    check_base(config.model.path)
    metrics.require(config.evaluation.metrics)
    items, splits = deal(config.data, config.partition, config.seed)
    check_peers(config.method, splits)
    check_tasks(items, splits, config.evaluation.metrics)
    return items, splits


@dataclass(frozen=True)
class Clients:
    """Who takes part in a run that is planned, from the data or, without them, from the config.

    Attributes:
        source: where their number comes from, in words.
        missing: why the data could not be loaded; empty if they were.
    """

    ids: Sequence[ClientId]
    source: str
    items: Sequence[Item] = ()
    splits: Mapping[ClientId, Split] = field(default_factory=dict)
    missing: str = ""


def planned_clients(config: Config) -> Clients:
    """Who would take part in a run. Data may be elsewhere; those that are here have to be right.

    Raises:
        ConfigError: a data set, a partition or a peer that there is not.
        DataError: the data are here, and cannot be used or shared out as the config asks.
    """
    clients = _planned(config)
    check_peers(config.method, clients.ids)
    return clients


def _planned(config: Config) -> Clients:
    try:
        items = load_items(config.data, config.seed)
    except DataError as error:
        if any(Path(name).exists() for name in config.data.sets if is_path(name)):
            raise
        number = config.partition.clients
        if config.partition.kind == "by_task" and not number:
            ids = sorted(task_of(name) for name in config.data.sets)
            return Clients(ids, "the names in data.sets, because the data are not here", missing=str(error))
        source = "partition.clients" if number else f"the default of {DEFAULT_CLIENTS}, because the data are not here"
        return Clients(numbered(number or DEFAULT_CLIENTS), source, missing=str(error))
    items, splits = share_out(items, config.partition, config.seed)
    return Clients(sorted(splits), "the data", items, splits)


def free_folder(config: Config) -> Path:
    """Where a run goes. Raises ConfigError: something is there."""
    if config.out is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path, n = Path(f"runs/{stamp}-{config.method.name}"), 1
        while path.exists():
            path, n = Path(f"runs/{stamp}-{config.method.name}-{n + 1}"), n + 1
        return path
    path = Path(config.out)
    if taken := in_the_way(path):
        raise ConfigError(f"out: {taken}{f', or continue with: capfl run --resume {path}' if path.is_dir() else ''}")
    return path


def config_of(path: Path) -> Config:
    """The config that the run in a folder was started with.

    Raises:
        CheckpointError: the folder is not a run.
    """
    if not (path / "config.toml").is_file():
        raise CheckpointError(
            f"{path} has no config.toml: not a run folder, or the run stopped before it began; start it anew"
        )
    return load_config(path / "config.toml")
