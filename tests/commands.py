"""The command line, called from within a test."""

from __future__ import annotations

import torch
from click.testing import Result
from typer.testing import CliRunner

from capfl.cli import app
from support import TINY


def text_of(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


TINY_FLAGS = [f"--{key}={text_of(value)}" for key, value in TINY.items()]


def command(*words: object, typed: str | None = None) -> Result:
    """Args: typed, what comes in on a pipe."""
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(app, [str(word) for word in words], input=typed)
    finally:
        torch.set_num_threads(threads)


def refused(*words: object) -> str:
    """What a command that must fail says."""
    result = command(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == "" or "error" not in result.stdout
    return result.stderr
