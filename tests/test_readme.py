"""What the README tells people to do works."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import typer

from capfl.cli import app
from capfl.config.keys import all_keys, flags

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert 'model="smollm2"' in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace('model="smollm2"', 'model="tiny", threads=1'), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["east", "north", "south", "runs/first/adapters/clients/north"]


def options(command: click.Command) -> set[str]:
    """The flags of a command and of those under it."""
    own = {
        flag.removeprefix("--").replace("-", "_")
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    return own.union(*(options(each) for each in getattr(command, "commands", {}).values()))


def test_every_flag_and_file_it_names_exists() -> None:
    pages = [path for path in (ROOT / "docs").glob("*.md") if path.name != "LOG.md"]  # a log has the flags of its day
    texts = [README, *(path.read_text(encoding="utf-8") for path in pages)]
    pattern = r"`([^`\n]*--[^`\n]*)`|^(.*capfl .*)$"
    commands = "\n".join(part for text in texts for found in re.findall(pattern, text, re.M) for part in found)
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    of_scripts = {flag.replace("-", "_") for flag in re.findall(r'add_argument\("--([a-z-]+)"', scripts)}
    known = set(flags()) | options(typer.main.get_command(app)) | of_scripts
    named = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z_.-]+)", commands)}
    others = {"no_deps", "strict", "help"}  # of pip, mypy and every command
    assert named - known - others == set()
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    assert len(named & known) > 10
    assert {"partition.kind", "data.scoring"} <= all_keys().keys()
