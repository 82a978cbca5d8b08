"""Every command in README and docs is one that there is: its name, its flags, and the project's files that it takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from capfl.cli import app
from capfl.config.keys import flags
from capfl.terminal import ConfigCommand

ROOT = Path(__file__).parent.parent
OF_THEIR_DAY = {"CHANGELOG.md", "docs/LOG.md", "docs/results/methods.md"}  # they tell of commands that are gone
PAGES = [
    path
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if str(path.relative_to(ROOT)) not in OF_THEIR_DAY
]
PROJECT = re.compile(r"(configs|benchmarks|examples|docs|deploy)/[\w./-]+\.\w+")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each line of a code block that runs capfl, make or a script of the project."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|console|)\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(r"(?:^ {4}\S.*\n)+", text, re.M)  # indented blocks
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        found = re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:time |\S*bin/)?(capfl|make|python\S*) (.*)", line)
        if not found:
            continue
        words = shlex.split(found[2], comments=True)
        ends = [k for k, word in enumerate(words) if word in (";", "|", "&&", "&", ">", "2>&1", "||")]
        yield [found[1], *words[: ends[0] if ends else None]]


def found_in(command: click.Command, words: list[str]) -> tuple[click.Command, list[str]]:
    """The command under a group that words name, and the rest of the words."""
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def unknown(words: list[str]) -> list[str]:
    """Flags of a capfl command that it does not have, or its name."""
    command, rest = found_in(typer.main.get_command(app), words)
    named = [word.split("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    if isinstance(command, click.Group):
        return [word for word in rest[:1] if not word.startswith("-") and word != "..."]
    own = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    keys = flags() if isinstance(command, ConfigCommand) else {}
    return [flag for flag in named if flag not in own and flag.removeprefix("--").replace("-", "_") not in keys]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_commands_are_there(page: Path) -> None:
    for program, *words in commands(page):
        line = " ".join([program, *words])
        if program == "capfl":
            assert unknown(words) == [], line
        elif program == "make":
            assert {word for word in words if re.fullmatch("[a-z-]+", word)} <= TARGETS, line
        for word in words:
            assert not PROJECT.fullmatch(word) or (ROOT / word).exists(), line


def test_commands_are_found_and_wrong_ones_are_seen() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 60
    assert unknown(["run", "--rounds", "5", "--codec.density=0.1", "--data", "a", "b"]) == []
    assert unknown(["flower", "node", "--rounds", "5"]) == ["--rounds"]
    assert unknown(["rum"]) == ["rum"]
