"""The keys of a config, the flags that stand for them, and their values as text."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from capfl.config.names import FLAGS, nearest
from capfl.config.schema import Config
from capfl.config.section import Section
from capfl.errors import ConfigError

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
    """One leaf of the config: its dotted path, and how it is described."""

    path: str
    info: FieldInfo

    @property
    def is_list(self) -> bool:
        annotation = self.info.annotation
        return any(get_origin(kind) is tuple for kind in (annotation, *get_args(annotation)))

    @property
    def is_map(self) -> bool:
        annotation = self.info.annotation
        return any(get_origin(kind) is dict for kind in (annotation, *get_args(annotation)))

    @property
    def _may_be_number(self) -> bool:
        return any(float in get_args(kind) for kind in get_args(self.info.annotation))

    def value(self, words: Sequence[str]) -> object:
        """What words of a command line stand for.

        In a list each has parts with commas, is the path of a file, or is a JSON or TOML list. In a map the parts are
        ``key=value``, or it is a JSON object or a TOML table.

        Raises:
            ConfigError: a word begins with [ or { and is no list or map, or a part of a map has no value.
        """
        if type(None) in get_args(self.info.annotation) and words[-1].lower() == "none":
            return None
        looks_like_number = words[-1].lstrip()[:1] in set("0123456789.+-") and "=" not in words[-1]
        if self.is_map and not (self._may_be_number and looks_like_number):
            return {key: value for word in words for key, value in self._pairs(word)}
        return [part for word in words for part in self._parts(word)] if self.is_list else words[-1]

    def _parts(self, text: str) -> list[object]:
        if not text.lstrip().startswith("["):
            if os.path.exists(text):  # a file whose name has a comma
                return [text]
            return [part.strip() for part in text.split(",") if part.strip()]
        return list(self._written(text, """a JSON or TOML list; write it as '["a, b", "c"]'"""))

    def _pairs(self, text: str) -> list[tuple[str, object]]:
        wanted = """a map; write it as a=b,c=d, or as '{"a": "b", "c": "d"}'"""
        if text.lstrip().startswith("{"):
            return list(self._written(text, wanted).items())
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if not all(found and key.strip() and value.strip() for key, found, value in pairs):
            raise ConfigError(f"{self.path}: {text} is not {wanted}")
        return [(key.strip(), value.strip()) for key, _, value in pairs]

    def _written(self, text: str, wanted: str) -> Any:
        """A value in JSON or TOML."""
        try:
            return json.loads(text)
        except ValueError:
            pass
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{self.path}: {text} is not {wanted} ({error})") from error


def as_flag(path: str, values: Sequence[str]) -> str:
    """A list as a flag, quoted for a shell: ``--data.labels 'a b,c'``, or a JSON list where commas will not do."""
    text = ",".join(values)
    simple = all(value and value == value.strip() and "," not in value for value in values)
    if not simple or text.startswith(("[", "--")) or text.lower() == "none":
        text = json.dumps(list(values), ensure_ascii=False)
    return f"--{path} {shlex.quote(text)}"


def map_flag(path: str, pairs: Mapping[str, str]) -> str:
    """A map as a flag, quoted for a shell: ``--data.columns prompt=Question``, or in JSON where commas will not do."""
    text = ",".join(f"{key}={value}" for key, value in pairs.items())
    simple = all(
        part and part == part.strip() and not set(part) & set(",={") for pair in pairs.items() for part in pair
    )
    return f"--{path} {shlex.quote(text if simple else json.dumps(dict(pairs), ensure_ascii=False))}"


def all_keys() -> dict[str, Key]:
    """Every leaf by its dotted path, in the order of the schema."""
    found: dict[str, Key] = {}
    for name, info in Config.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            leaves = {f"{name}.{leaf}": own for leaf, own in info.annotation.model_fields.items()}
        else:
            leaves = {name: info}
        found |= {path: Key(path, own) for path, own in leaves.items()}
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


def meant(wrong: str) -> list[str]:
    """The flags (underscores, no dashes) that one which there is not may stand for, the likeliest first."""
    if usual := FLAGS.get(wrong.lower()):
        return [usual]
    table = flags()
    found: dict[str, str] = {}  # of several flags for one key the likeliest
    for flag in [own for own in table if own.rpartition(".")[2] == wrong] or nearest(wrong, table, 6):
        found.setdefault(table[flag], flag)
    return list(found.values())[:3]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables by their dotted keys; a map is one leaf."""
    maps = {key.path for key in all_keys().values() if key.is_map}
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in maps:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
