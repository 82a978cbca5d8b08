"""The keys of a config, and the flags that stand for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from capfl.config.schema import Config, Section

PUBLISHED = {  # flags of CA-PFL's published code that capfl has under another name
    "num_clients": "partition.clients",
    "server_epochs": "federation.rounds",
    "client_epochs": "train.epochs",
    "base_sparsity_ratio": "codec.density",
}
PUBLISHED_DATA = "openbookqa"  # what that code trains on
WORDS = {  # the word one would try first
    "model": "model.path",
    "data": "data.sets",
    "partition": "partition.kind",
    "method": "method.name",
    "codec": "codec.values",
    "batch_size": "train.batch_size",
}


@dataclass(frozen=True)
class Key:
    """One leaf of the config: its dotted path, how it is described, and its default."""

    path: str
    info: FieldInfo

    @property
    def default(self) -> Any:
        return self.info.default

    @property
    def is_list(self) -> bool:
        annotation = self.info.annotation
        return any(get_origin(kind) is tuple for kind in (annotation, *get_args(annotation)))

    @property
    def may_be_none(self) -> bool:
        return type(None) in get_args(self.info.annotation)


def all_keys() -> dict[str, Key]:
    """Every leaf by its dotted path, in the order of the schema."""
    found: dict[str, Key] = {}

    def visit(section: type[Section], prefix: str) -> None:
        for name, info in section.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
                visit(info.annotation, f"{prefix}{name}.")
            else:
                found[prefix + name] = Key(prefix + name, info)

    visit(Config, "")
    return found


def flags() -> dict[str, str]:
    """Flag (underscores, no dashes) -> dotted path: the path itself, section_leaf, the leaf if unique, an alias."""
    paths = list(all_keys())
    by_leaf: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        by_leaf[path.rpartition(".")[2]].append(path)
    table = {leaf: found[0] for leaf, found in by_leaf.items() if len(found) == 1}
    table |= {path.replace(".", "_"): path for path in paths}
    return table | {path: path for path in paths} | PUBLISHED | WORDS


def shortest() -> dict[str, str]:
    """The flag by which to call each key: the word that one would try first, or the shortest."""
    found: dict[str, str] = {}
    for flag, path in sorted(flags().items(), key=lambda item: (item[0] not in WORDS, len(item[0]), "." in item[0])):
        found.setdefault(path, flag)
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables by their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
