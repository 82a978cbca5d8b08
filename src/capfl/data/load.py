"""All items of a run, from the data sets that its configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from capfl.config.schema import DataConfig
from capfl.data import helpdesk, jsonl, sources
from capfl.errors import ConfigError, DataError
from capfl.rng import stream
from capfl.types import Item

HELPDESK = "helpdesk"


def load_items(config: DataConfig, seed: int) -> list[Item]:
    """Items of all ``config.sets``, one set after the other, at most ``config.limit`` of each at random.

    Raises
    ------
    ConfigError
        A set is unknown or named twice, or two files share a name (and so a task).
    DataError
        A set cannot be read, or two files give one label different letters.
    """
    check_names(config.sets)
    sets = {name: load_set(name, config, seed) for name in config.sets}
    if config.scoring == "letter":
        _check_letters({name: items for name, items in sets.items() if is_path(name) and not items[0].listed})
    return [item for items in sets.values() for item in items]


def load_set(name: str, config: DataConfig, seed: int, path: Path | None = None) -> list[Item]:
    """Items of one of ``config.sets``, at most ``config.limit`` at random.

    Args:
        path: where its file is; what is drawn, and its task, still go by ``name``.

    Raises
    ------
    DataError
        It cannot be read.
    """
    if name == HELPDESK:
        items = helpdesk.generate(config.sites, config.items, config.conflict, seed)
    elif path is not None or is_path(name):
        task = task_of(name)
        read = jsonl.read_file(name if path is None else path, config.labels or ())
        items = [replace(item, fields={**item.fields, "task": task}) for item in read]
    else:
        items = sources.load(name, config.split, config.dir)
    return _limited(items, config.limit, seed, name)


def task_of(name: str) -> str:
    """What the items of a set have in their field ``task``."""
    return Path(name).stem if is_path(name) else name


def check_names(sets: Sequence[str]) -> None:
    """All mistakes in the names of ``data.sets`` at once, before anything is read.

    Raises
    ------
    ConfigError
        A set is unknown or named twice, or two files share a name (and so a task).
    """
    known = [HELPDESK, *sources.DATASETS]
    wrong = []
    for name in sets:
        if name not in known and not is_path(name):
            near = get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            wrong.append(
                f"data.sets: no data set is called {name!r}{hint}; "
                f"choose from {', '.join(known)}, or give the path of a .jsonl file"
            )
    tasks = [task_of(name) for name in sets]
    for task in sorted({task for task in tasks if tasks.count(task) > 1}):
        named = [name for name, its in zip(sets, tasks, strict=True) if its == task]
        wrong.append(f"data.sets: {', '.join(named)} are one task, {task!r}; name it once or rename a file")
    if wrong:
        raise ConfigError("\n".join(wrong))


def _check_letters(files: Mapping[str, Sequence[Item]]) -> None:
    """What is learnt of a label is its letter: one that has another elsewhere would teach others the wrong one.

    Raises
    ------
    DataError
        Two files of texts and labels give one label different letters.
    """
    first: dict[str, tuple[int, str]] = {}
    for name, items in files.items():
        for at, label in enumerate(items[0].choices):
            before, where = first.setdefault(label, (at, name))
            if before != at:
                every = sorted({own for rows in files.values() for own in rows[0].choices})
                raise DataError(
                    f"label {label!r} is option {before + 1} in {where} and {at + 1} in "
                    f"{name}, because their rows do not have the same labels; give all labels, here and at every site, "
                    f"as data.labels={','.join(every)}, or train and score the labels' text with data.scoring=text"
                )


def is_path(name: str) -> bool:
    return name.endswith((".jsonl", ".json")) or "/" in name or "\\" in name


def _limited(items: list[Item], limit: int | None, seed: int, name: str) -> list[Item]:
    if limit is None or len(items) <= limit:
        return items
    # Keyed by the task, not the path, so that the same file elsewhere gives the same items.
    kept = stream(seed, "limit", items[0].fields.get("task", name)).choice(len(items), limit, replace=False)
    return [items[k] for k in sorted(kept.tolist())]
