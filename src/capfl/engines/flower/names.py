"""What clients and runs may be called over a network: names that are files everywhere, and go into messages."""

from __future__ import annotations

import re

from capfl.errors import ConfigError, printable

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}"  # of clients, runs, methods, versions


def readable(folder: str) -> str:
    """The name of a run's folder as it stands in the name that nodes know the run by."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", folder).lstrip(".-")[:50] or "run"


def check_client(name: str, where: str) -> None:
    """Raises ConfigError: a client cannot be called so; names the option or file that it is from."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(
            f"{where}: {printable(repr(name), 80)} is no client id; begin with a letter or digit, go on with letters "
            "from A to Z, digits, _ . + -, at most 100 in all"
        )
