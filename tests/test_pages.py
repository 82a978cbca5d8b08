"""Every command in README and docs is one that there is: its name, its flags, and the project's files that it takes."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from capfl.cli import app
from capfl.cli.terminal import ConfigCommand
from capfl.compare.spec import make_plan
from capfl.config.keys import flags
from pages import PAGES, ROOT, commands

PROJECT = re.compile(r"(configs|benchmarks|examples|docs|deploy|tests)/[\w./-]+\.\w+")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def found_in(command: click.Command, words: list[str]) -> tuple[click.Command, list[str]]:
    """The command under a group that words name, and the rest of the words."""
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


@cache
def whole() -> click.Command:
    return typer.main.get_command(app)


def unknown(words: list[str]) -> list[str]:
    """Flags of a capfl command that it does not have, or its name."""
    command, rest = found_in(whole(), words)
    named = [word.split("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    if isinstance(command, click.Group):
        return [word for word in rest[:1] if not word.startswith("-") and word != "..."]
    own = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    keys = flags() if isinstance(command, ConfigCommand) else {}
    return [flag for flag in named if flag not in own and flag.removeprefix("--").replace("-", "_") not in keys]


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_are_there(page: str) -> None:
    for program, *words in commands(PAGES[page]):
        line = " ".join([program, *words])
        if program == "capfl":
            assert unknown(words) == [], line
        elif program == "make":
            assert {word for word in words if re.fullmatch("[a-z-]+", word)} <= TARGETS, line
        for word in words:
            assert not PROJECT.fullmatch(word) or (ROOT / word).exists(), line


def test_commands_are_found_and_wrong_ones_are_seen(tmp_path: Path) -> None:
    assert sum(len(list(commands(page))) for page in PAGES.values()) > 80
    page = tmp_path / "page.md"
    page.write_text("```python\nx\n```\nno\n```\n.venv/bin/capfl keys  # all\n```\n\n    time make test | tail\n")
    assert list(commands(page)) == [["capfl", "keys"], ["make", "test"]]
    page.write_text("```bash\nls\n```\n")
    with pytest.raises(ValueError, match="no command: 'ls'"):
        list(commands(page))
    assert unknown(["run", "--rounds", "5", "--codec.density=0.1", "--data", "a", "b"]) == []
    assert unknown(["flower", "node", "--rounds", "5"]) == ["--rounds"]
    assert unknown(["rum"]) == ["rum"]


def test_comparisons_name_splits_and_variants_of_their_specs() -> None:
    found = {" ".join(words): words for page in PAGES.values() for words in commands(page)}
    specs = [words for line, words in found.items() if line.startswith("capfl compare benchmarks/")]
    for words in specs:
        command, rest = found_in(whole(), words[1:])
        given = command.make_context("compare", rest).params
        splits, only = ((given[name] or "").split(",") if given[name] else [] for name in ("splits", "only"))
        assert make_plan(ROOT / given["spec"], splits, only, [0]).cells, words
    assert len(specs) > 5


def test_the_files_of_tests_that_pages_name_are_there() -> None:
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for page, path in PAGES.items():
        assert set(re.findall(r"\btest_\w+\.py", path.read_text(encoding="utf-8"))) <= there, page
