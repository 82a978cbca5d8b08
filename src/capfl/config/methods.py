"""The names of methods and of their settings, which are checked before torch is loaded."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from capfl.config.names import METHODS, did_you_mean, nearest, plain
from capfl.config.schema import MethodConfig
from capfl.errors import ConfigError
from capfl.types import ClientId

METHOD_LIST = Path(__file__).parents[1] / "methods" / "list.json"
"""What ``capfl.methods.describe`` says, so that torch is not loaded for it. A test compares the two."""

MOST = 12  # clients that an error names

OF_ALL = ("turns", "server_step")  # settings of every method whose clients learn from each other


def listed() -> list[dict[str, str]]:
    """Every method's row, in words."""
    rows: list[dict[str, str]] = json.loads(METHOD_LIST.read_text(encoding="utf-8"))
    return rows


def check_method(config: MethodConfig, own: Collection[str] = ()) -> None:
    """See that there is the method, and that it uses the settings that are given.

    Args:
        own: names of the caller's own methods, which have their settings already.

    Raises:
        ConfigError: there is none of that name, or it does not use a setting.
    """
    settings = {row["method"]: row["settings"].split(", ") for row in listed()}
    settings |= {name: [] for name in own}
    name = config.name
    if name not in settings:
        known = METHODS.get(plain(name))
        meant = did_you_mean([known] if known else nearest(name, settings))
        hint = f"{meant} Else" if meant else ";"
        raise ConfigError(f"method.name: there is no method {name!r}{hint} choose from {', '.join(settings)}")
    given = [key for key in type(config).model_fields if key != "name" and getattr(config, key) is not None]
    if unused := [key for key in given if key not in (*settings[name], *OF_ALL)]:
        users = [other for other, its in settings.items() if unused[0] in its]
        raise ConfigError(f"method.{unused[0]}: {name} does not use it; leave it out, or use {', '.join(users)}")


def check_peers(config: MethodConfig, clients: Collection[ClientId]) -> None:
    """See that ``method.peers`` names clients that there are.

    Raises:
        ConfigError: it names others, or a group has the name of a client that is alone.
    """
    peers = config.named
    if unknown := sorted(peers.keys() - set(clients)):
        meant = did_you_mean(nearest(unknown[0], clients))
        hint = f"{meant} The" if meant else "; the"
        there = ", ".join(sorted(clients)[:MOST]) + (", ..." if len(clients) > MOST else "")
        raise ConfigError(f"method.peers: there is no client {unknown[0]!r}{hint} clients are {there}")
    if taken := sorted(set(peers.values()) & (set(clients) - peers.keys())):
        name = taken[0]
        raise ConfigError(
            f"method.peers: a group has the name {name!r} of a client that is in no group; rename the "
            f"group, or put the client into it: {name} = {name!r}"
        )
