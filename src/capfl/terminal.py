"""What all commands share: how a config is given, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from capfl.config import Config
from capfl.config.load import load_command
from capfl.errors import CapflError

FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
ConfigFile = Annotated[Path | None, typer.Argument(help="TOML file; without it, the defaults and the flags")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one key; see `capfl keys`")]


def load_given(context: typer.Context, config: Path | None, sets: list[str] | None) -> Config:
    """The config of a file, `--set` and flags."""
    arguments = list(context.args)
    if config is not None and str(config).startswith("--"):  # a flag in the place of the file
        arguments, config = [str(config), *arguments], None
    return load_command(config, sets or [], arguments)


@contextmanager
def errors(go_on: str = "capfl run --resume RUN_FOLDER") -> Iterator[None]:
    """Errors that capfl raises on purpose end with their message and code 2; an interruption with 130."""
    try:
        yield
    except CapflError as error:
        Console(stderr=True).print(f"[bold red]error[/]: {type(error).__name__}", highlight=False)
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        sys.stderr.write(f"interrupted; go on with: {go_on}\n")
        raise typer.Exit(130) from error
