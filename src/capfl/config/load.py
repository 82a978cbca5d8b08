"""TOML file, then `--set key=value`, then flags, into one checked Config. Every mistake is reported at once."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from capfl.config.keys import Key, all_keys, flags
from capfl.config.schema import Config
from capfl.errors import ConfigError


def load_config(path: Path | None = None, settings: Mapping[str, object] | None = None) -> Config:
    """Read a config file and lay settings (dotted key -> value, text or typed) over it.

    Raises:
        ConfigError: lists every unknown key and every wrong value of both.
    """
    return _checked(_read(path), dict(settings or {}), [])


def load_command(path: Path | None, sets: Sequence[str], arguments: Sequence[str]) -> Config:
    """As ``load_config``, from `--set key=value` pairs and the remaining command-line arguments (flags).

    Raises:
        ConfigError: lists every mistake of the file, the pairs and the flags.
    """
    settings: dict[str, object] = {}
    mistakes: list[str] = []
    for pair in sets:
        key, found, value = pair.partition("=")
        if found:
            settings[key.strip()] = value.strip()
        else:
            mistakes.append(f"--set {pair}: write it as key=value")
    table = flags()
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, found, value = word.partition("=")
        flag = name.removeprefix("--").replace("-", "_")
        if not word.startswith("--"):
            mistakes.append(
                f"{word}: not a flag; the config file comes first, flags start with -- and take one value each"
            )
        elif flag not in table:
            mistakes.append(f"{name}: no such flag{_suggest(flag, list(table), '--')}")
            if not found and waiting and not waiting[0].startswith("--"):
                waiting.pop(0)
        elif not found and (not waiting or waiting[0].startswith("--")):
            mistakes.append(f"{name}: needs a value")
        else:
            settings[table[flag]] = value if found else waiting.pop(0)
    return _checked(_read(path), settings, mistakes)


def to_toml(config: Config) -> str:
    """The resolved config as TOML that ``load_config`` reads back to an equal Config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def from_toml(text: str, settings: Mapping[str, object] | None = None) -> Config:
    """The Config that ``to_toml`` wrote, with settings laid over it. Raises as ``load_config``."""
    return _checked(tomllib.loads(text), dict(settings or {}), [])


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error


def _checked(tree: dict[str, Any], settings: dict[str, object], mistakes: list[str]) -> Config:
    keys = all_keys()
    for key, value in settings.items():
        if key not in keys:
            mistakes.append(f"{key}: no such key{_suggest(key, list(keys))}")
            continue
        section, _, leaf = key.rpartition(".")
        target = tree.setdefault(section, {}) if section else tree
        if isinstance(target, dict):
            target[leaf] = _from_text(keys[key], value) if isinstance(value, str) else value
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        mistakes += [_explain(dict(item), list(keys)) for item in error.errors()]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def _from_text(key: Key, text: str) -> object:
    if key.may_be_none and text.lower() == "none":
        return None
    return [part.strip() for part in text.split(",") if part.strip()] if key.is_list else text


def _explain(item: dict[str, Any], keys: list[str]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{path}: no such key{_suggest(path, keys)}"
    given = "" if isinstance(item.get("input"), dict) else f" (given: {item.get('input')!r})"
    where = f"{path}: " if path else ""
    return where + str(item["msg"]).removeprefix("Value error, ") + given


def _suggest(wrong: str, right: list[str], prefix: str = "") -> str:
    leaf = wrong.rpartition(".")[2]
    same_leaf = [key for key in right if key.rpartition(".")[2] == leaf]
    near = same_leaf or difflib.get_close_matches(wrong, right, n=3)
    return f"; did you mean {' or '.join(prefix + name for name in near)}?" if near else ""
