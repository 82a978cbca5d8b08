"""What all commands share: how a config is given, the list of its flags, and what becomes of errors."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Annotated, ClassVar, TextIO

import click
import typer
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text
from typer.core import TyperCommand

from capfl.config import Config
from capfl.config.keys import all_keys, flat, shortest
from capfl.config.load import load_command
from capfl.errors import CapflError, ConfigError
from capfl.interruption import Interrupted

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but tabs and line ends
FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}
ConfigFile = Annotated[Path | None, typer.Argument(help="TOML file; without it, defaults and flags")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="set one key; see `capfl keys`")]


STEPS = {  # what one does first
    "capfl demo": "try a run on built-in data; a few minutes on two cores",
    "capfl run --data north.jsonl south.jsonl": "train on your own files; each file is a client",
    "capfl plan --data north.jsonl south.jsonl": "estimate what that run will cost: bytes, memory, time",
    "capfl report RUN": "write an HTML report of a run; `capfl compare` compares several",
    "capfl chat ADAPTER": "chat with an adapter of a run; predict, generate, eval and export use it, too",
}


def first_steps(version: str) -> Group:
    """What `capfl` says on its own."""
    lines: list[Text | Padding] = [Text(f"capfl {version}: personalised federated fine-tuning of language models\n")]
    for command, words in STEPS.items():
        lines += [indented(2, command, "bold"), indented(6, words, "dim")]
    lines.append(Text("\ncapfl --help lists all commands; capfl doctor checks this machine."))
    return Group(*lines)


class ConfigCommand(TyperCommand):
    """A command that takes keys of a config as flags, and lists them in its help."""

    takes: ClassVar[tuple[str, ...]] = ("",)
    """How the keys begin that it takes."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help(ctx, formatter)
        screen().print(key_list(self.takes))


class AnswerCommand(ConfigCommand):
    """A command that lets a model answer."""

    takes: ClassVar[tuple[str, ...]] = ("seed", "model.", "evaluation.batch_size", "runtime.threads")


class AnswerRowsCommand(AnswerCommand):
    """A command that lets a model answer rows."""

    takes: ClassVar[tuple[str, ...]] = (*AnswerCommand.takes, "data.columns", "data.split")


class RowsCommand(ConfigCommand):
    """A command that reads rows for a run."""

    takes: ClassVar[tuple[str, ...]] = ("data.columns",)


class ModelCommand(ConfigCommand):
    """A command that loads a base model."""

    takes: ClassVar[tuple[str, ...]] = ("model.",)


def key_list(beginnings: tuple[str, ...] = ("",)) -> Group:
    """Keys of a config by section, with their defaults and shortest flags; below each what it means."""
    short = shortest()
    blocks: list[Text | Padding] = []
    listed = [key for key in all_keys().values() if key.path.startswith(beginnings)]
    for section, keys in groupby(listed, lambda key: key.path.rpartition(".")[0]):
        blocks.append(Text(f"[{section}]" if section else "top level", style="bold"))
        for key in keys:
            default = key.info.default
            default = ",".join(default) if isinstance(default, tuple) else str(default).lower()
            blocks.append(indented(2, f"{key.path} = {default}  --{short[key.path].replace('_', '-')}"))
            blocks.append(indented(6, key.info.description or "", "dim"))
        blocks.append(Text())
    return Group(*blocks)


def indented(by: int, text: str, style: str = "") -> Padding:
    """Text in a terminal; lines that it is folded to begin in the same column."""
    return Padding(Text(text, style=style), (0, 0, 0, by))


def load_given(context: typer.Context, config: Path | None, sets: list[str] | None) -> Config:
    """The config of a file, `--set` and flags."""
    arguments = list(context.args)
    if config is not None and str(config).startswith("--"):  # a flag in the place of the file
        arguments, config = [str(config), *arguments], None
    return load_command(config, sets or [], arguments)


def typed_lines() -> Iterator[str]:
    """Lines of the input until it ends; somebody who types them is shown where, and can edit them."""
    if not sys.stdin.isatty():
        yield from iter(sys.stdin.readline, "")
        return
    with suppress(ImportError):  # not on Windows, whose terminal edits lines itself
        import readline  # noqa: F401 - input() edits lines once it is imported
    with suppress(EOFError):
        while True:
            yield input("> ")


def load_own(context: typer.Context, sets: list[str] | None) -> Config:
    """The config of `--set` and flags, for a command that takes some of the keys.

    Raises:
        ConfigError: as ``load_command``, or a key that the command has no use for.
    """
    config = load_command(None, sets or [], list(context.args))
    command = context.command
    takes = command.takes if isinstance(command, ConfigCommand) else ()
    for key, _ in flat(config.model_dump(exclude_unset=True)):
        if not key.startswith(takes):
            raise ConfigError(f"{key}: `capfl {context.info_name}` does not use it; --help lists what it takes")
    return config


def screen(stderr: bool = False) -> Console:
    """Where commands print. Line 100 of a file, ``rows.jsonl:100:``, is no emoji there."""
    return Console(stderr=stderr, emoji=False)


def shown(text: str, stream: TextIO | None = None) -> str:
    """What a model, a row or an adapter says, of which a terminal is to obey nothing; a file gets it as it is.

    Args:
        stream: where it will be written; by default to standard output.
    """
    if not (stream or sys.stdout).isatty():
        return text
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


@contextmanager
def errors(go_on: str = "capfl run --resume RUN_FOLDER") -> Iterator[None]:
    """Errors that capfl raises on purpose end with their message and code 2; a signal with 128 and its number."""
    try:
        yield
    except CapflError as error:
        screen(stderr=True).print(f"[bold red]error[/]: {type(error).__name__}", highlight=False)
        screen(stderr=True).print(shown(str(error), sys.stderr), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        known = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        sys.stderr.write(f"{known.said or f'interrupted; continue with: {go_on}'}\n")
        raise typer.Exit(128 + known.number) from error
