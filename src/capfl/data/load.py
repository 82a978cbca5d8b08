"""All items of a run, from the data sets that its configuration names, or from rows in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capfl.config.data import BUILT_IN, DataConfig, is_hub, is_path
from capfl.config.names import nearest
from capfl.data import formats, helpdesk, replies, sources
from capfl.data.files import KINDS, name_of
from capfl.data.labels import refuse_conflicts, refuse_too_many, refuse_variants
from capfl.data.paths import folder_words, is_saved, near, require
from capfl.errors import ConfigError
from capfl.rng import stream
from capfl.types import Item

MAKERS = dict(zip(BUILT_IN, (helpdesk.generate, replies.generate), strict=True))
"""Data sets that are made and not read: (sites, items of each, conflict, seed) -> items."""


def load_items(config: DataConfig, seed: int) -> list[Item]:
    """Items of all ``config.sets``, one set after the other, at most ``config.limit`` of each at random.

    Everything that can be wrong with them without a tokenizer is found here.

    Raises:
        ConfigError: a set is unknown or named twice, or two files share a name (and so a task).
        DataError: a set cannot be read, cannot be scored by letter, or gives a label another letter than another set.
    """
    check_names(config.sets)
    sets = {name: load_set(name, config, seed) for name in config.sets}
    return _together(config, sets, [name for name in sets if is_path(name) or is_hub(name)])


def load_held(clients: Mapping[str, Iterable[Any] | Path], config: DataConfig, seed: int) -> list[Item]:
    """As ``load_items``, of rows in memory by client, or of the paths of their files: each as a file of that name.

    Raises:
        ConfigError: there are no clients.
        DataError: as ``load_items``.
    """
    if not clients:
        raise ConfigError("there are no clients; give their rows by name, such as {'north': rows, 'south': rows}")
    labels = config.labels or ()
    sets = {}
    for client, rows in clients.items():
        if isinstance(rows, str | Path):
            items = formats.read_file(rows, labels, client, config.columns, config.split)
        else:
            items = formats.read_held(client, rows, labels, config.columns)
        place = f"client {client!r}"
        sets[place] = _some(place, items, config, seed)
    return _together(config, sets, list(sets))


def load_set(name: str, config: DataConfig, seed: int, path: Path | None = None) -> list[Item]:
    """Items of one of ``config.sets``, at most ``config.limit`` at random.

    Args:
        path: where its file is; what is drawn, and its task, still go by ``name``.

    Raises:
        DataError: it cannot be read, or cannot be scored by letter.
    """
    if name in MAKERS:
        items = MAKERS[name](config.sites, config.items, config.conflict, seed)
    elif path is not None or is_path(name):
        items = formats.read_file(path or name, config.labels or (), task_of(name), config.columns, config.split)
    elif is_hub(name):
        hub, _, part = name.partition(":")
        here = near(Path(hub)) if Path(hub).parent.is_dir() else ""  # a slip in a path looks like a name on the Hub
        rows = sources.hub_rows(hub, part or None, config.split, here and f", or, if it is to be a file here{here}")
        items = formats.read_as(name, task_of(name), rows, config.labels or (), config.columns)
    else:
        items = sources.load(name, config.split, config.dir)
    return _some(name, items, config, seed)


def task_of(name: str) -> str:
    """What the items of a set have in their field ``task``."""
    if is_path(name):
        return name_of(name)
    return name.rpartition("/")[2].replace(":", "-")


def check_names(sets: Sequence[str]) -> None:
    """All mistakes in the names of ``data.sets`` at once, before anything is read.

    Raises:
        ConfigError: a set is unknown or named twice, or two files share a name (and so a task).
    """
    known = [*BUILT_IN, *sources.DATASETS]
    wrong = []
    for name in sets:
        if name not in known and not is_path(name) and not is_hub(name):
            if Path(name).is_dir() and not is_saved(Path(name)):
                wrong.append(f"data.sets: {name} {folder_words(Path(name))}")
                continue
            alike = nearest(name, known, 1)
            hint = f" (did you mean {alike[0]!r}?)" if alike else ""
            if Path(name).exists():
                hint = f" (if you mean the file or folder of that name: ./{name})"
            wrong.append(
                f"data.sets: no data set is called {name!r}{hint}; choose from {', '.join(known)}, or give OWNER/NAME "
                f"of one on the Hub, or the path of {KINDS}"
            )
    tasks = [task_of(name) for name in sets]
    for task in sorted({task for task in tasks if tasks.count(task) > 1}):
        named = [name for name, its in zip(sets, tasks, strict=True) if its == task]
        wrong.append(f"data.sets: {', '.join(named)} are one task, {task!r}; name it once or rename a file")
    if wrong:
        raise ConfigError("\n".join(wrong))


def check_sets(config: DataConfig) -> None:
    """See that ``config.sets`` are there, as far as it can be seen without reading them or asking the Hub.

    Raises:
        ConfigError: as ``check_names``.
        DataError: a file or folder is not there.
    """
    check_names(config.sets)
    for name in config.sets:
        if is_path(name):
            require(Path(name))


def _some(place: str, items: list[Item], config: DataConfig, seed: int) -> list[Item]:
    """At most ``config.limit`` items of one set. Raises DataError: some have more options than there are letters."""
    if config.scoring == "letter":
        refuse_too_many(place, items)
    if config.limit is None or len(items) <= config.limit:
        return items
    # Keyed by the task, not the path, so that the same file elsewhere gives the same items.
    kept = stream(seed, "limit", items[0].source).choice(len(items), config.limit, replace=False)
    return [items[k] for k in sorted(kept.tolist())]


def _together(config: DataConfig, sets: Mapping[str, list[Item]], own: Sequence[str]) -> list[Item]:
    """The items of all sets. Raises DataError: labels of the user's ``own`` sets contradict each other."""
    labelled = {name: sets[name] for name in own if sets[name][0].choices and not sets[name][0].listed}
    if not config.labels:
        refuse_variants({label: name for name, items in labelled.items() for label in items[0].choices})
    if config.scoring == "letter":
        refuse_conflicts(labelled)
    return [item for items in sets.values() for item in items]
