"""Values of keys as text: how a flag or `--set` is read, and how one is printed so that it can be pasted back."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Sequence

from capfl.config.keys import Key
from capfl.errors import ConfigError


def from_text(key: Key, text: str) -> object:
    """The value that a text stands for; lists are written with commas, or as a JSON or TOML list.

    Raises:
        ConfigError: the text begins with [ and is not a list.
    """
    if key.may_be_none and text.lower() == "none":
        return None
    return list_from_text(key.path, text) if key.is_list else text


def as_flag(path: str, values: Sequence[str]) -> str:
    """A list as a flag, quoted for a shell: ``--data.labels 'a b,c'``, or a JSON list where commas will not do."""
    text = ",".join(values)
    simple = all(value and value == value.strip() and "," not in value for value in values)
    if not simple or text.startswith(("[", "--")) or text.lower() == "none":
        text = json.dumps(list(values), ensure_ascii=False)
    return f"--{path} {shlex.quote(text)}"


def list_from_text(path: str, text: str) -> list[object]:
    """The parts between commas, or the values of a JSON or TOML list. Raises as ``from_text``."""
    if not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        found = json.loads(text)
    except ValueError:
        try:
            found = tomllib.loads(f"list = {text}")["list"]
        except tomllib.TOMLDecodeError as error:
            wanted = """'["a, b", "c"]'"""
            raise ConfigError(f"{path}: {text} is not a JSON or TOML list ({error}); write it as {wanted}") from error
    return list(found)
