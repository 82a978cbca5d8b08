"""TOML file, then `--set key=value`, then flags, into one checked Config. Every mistake is reported at once."""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from capfl.config.keys import PUBLISHED, PUBLISHED_DATA, all_keys, flags, meant
from capfl.config.names import did_you_mean, nearest
from capfl.config.schema import Config
from capfl.errors import ConfigError


def load_config(path: Path | None = None, settings: Mapping[str, object] | None = None) -> Config:
    """Read a config file and lay settings (dotted key -> value, text or typed) over it.

    Raises:
        ConfigError: lists every unknown key and every wrong value of both.
    """
    return _checked(read_toml(path, "config file") if path else {}, dict(settings or {}), [])


def load_command(path: Path | None, sets: Sequence[str], arguments: Sequence[str]) -> Config:
    """As ``load_config``, from `--set key=value` pairs and the remaining command-line arguments (flags).

    With a flag that only CA-PFL's published code has, such as ``--num_clients``, the data are OpenBookQA, as there,
    unless the file, the pairs or the flags name other data.

    Raises:
        ConfigError: lists every mistake of the file, the pairs and the flags.
    """
    tree = read_toml(path, "config file") if path else {}
    settings: dict[str, object] = {}
    mistakes: list[str] = []
    for pair in sets:
        key, found, value = pair.partition("=")
        if found:
            settings[key.strip()] = value.strip()
        else:
            mistakes.append(f"--set {pair}: write it as key=value")
    given, published = _read_flags(arguments, mistakes)
    settings |= given
    data = tree.get("data", {})
    if published and "data.sets" not in settings and not (isinstance(data, dict) and "sets" in data):
        settings["data.sets"] = [PUBLISHED_DATA]
    return _checked(tree, settings, mistakes)


def changed(config: Config, settings: Mapping[str, object]) -> Config:
    """A config with other values of some keys. Raises as ``load_config``."""
    return _checked(config.model_dump(), dict(settings), [])


def dated(config: Config) -> Config:
    """The config of a run that begins now: ``data.date`` is today, unless it is given."""
    if config.data.date is not None:
        return config
    data = config.data.model_copy(update={"date": datetime.date.today().isoformat()})
    return config.model_copy(update={"data": data})


def to_toml(config: Config) -> str:
    """The resolved config as TOML that ``load_config`` reads back to an equal Config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def from_toml(text: str, settings: Mapping[str, object] | None = None) -> Config:
    """The Config that ``to_toml`` wrote, with settings laid over it. Raises as ``load_config``."""
    return _checked(tomllib.loads(text), dict(settings or {}), [])


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """What is in a TOML file. Raises ConfigError: it is not there, where ``what`` should be, or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error


def _read_flags(arguments: Sequence[str], mistakes: list[str]) -> tuple[dict[str, object], bool]:
    """The values of all flags by key, and whether one is a flag of the published code alone.

    A flag of a list takes all words up to the next flag, as a shell writes them for ``*.jsonl``, and may be repeated.
    """
    keys, table = all_keys(), flags()
    given: dict[str, list[str]] = {}
    published = False
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        name, found, value = word.partition("=")
        flag = name.removeprefix("--").replace("-", "_")
        if not word.startswith("--"):
            mistakes.append(f"{word}: not a flag; the config file comes first, then flags, which start with --")
            continue
        words = [value] if found else []
        key = keys.get(table.get(flag, ""))
        while waiting and not waiting[0].startswith("--") and (not words or (not found and key and key.is_list)):
            words.append(waiting.pop(0))
        if key is None:
            mistakes.append(f"{name}: no such flag{did_you_mean('--' + own.replace('_', '-') for own in meant(flag))}")
        elif not words:
            mistakes.append(f"{name}: needs a value")
        else:
            given.setdefault(key.path, []).extend(words)
        published |= flag in PUBLISHED
    settings: dict[str, object] = {}
    for path, words in given.items():
        try:
            settings[path] = keys[path].value(words)
        except ConfigError as error:
            mistakes.append(str(error))
    return settings, published


def _checked(tree: dict[str, Any], settings: dict[str, object], mistakes: list[str]) -> Config:
    keys = all_keys()
    for key, value in settings.items():
        if key not in keys:
            mistakes.append(f"{key}: no such key{_suggest(key, list(keys))}")
            continue
        if not _is_utf8(value):
            mistakes.append(
                f"{key}: {str(value)!a} is not UTF-8, and no config could name it; rename the file or folder"
            )
            continue
        section, _, leaf = key.rpartition(".")
        target = tree.setdefault(section, {}) if section else tree
        if not isinstance(target, dict):
            continue  # which is a mistake of the file
        try:
            target[leaf] = keys[key].value([value]) if isinstance(value, str) else value
        except ConfigError as error:
            mistakes.append(str(error))
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        mistakes += [_explain(dict(item), list(keys)) for item in error.errors()]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def _is_utf8(value: object) -> bool:
    """Can it be written? Python has half a pair of code points for a byte of the command line that is not UTF-8."""
    try:
        "".join(map(str, value if isinstance(value, list | tuple) else [value])).encode()
    except UnicodeEncodeError:
        return False
    return True


def _explain(item: dict[str, Any], keys: list[str]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{path}: no such key{_suggest(path, keys)}"
    given = "" if isinstance(item.get("input"), dict) else f" (given: {item.get('input')!r})"
    where = f"{path}: " if path else ""
    return where + str(item["msg"]).removeprefix("Value error, ") + given


def _suggest(wrong: str, right: list[str]) -> str:
    leaf = wrong.rpartition(".")[2]
    return did_you_mean([key for key in right if key.rpartition(".")[2] == leaf] or nearest(wrong, right))
