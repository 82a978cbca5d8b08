"""The files of deploy/ parse, their commands are capfl's, and what they name is there. No image is built."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from capfl.cli import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
COMPOSE = sorted(DEPLOY.glob("*.yaml"))
UNITS = sorted(DEPLOY.glob("*.service"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(DEPLOY.iterdir())}


def parsed(words: list[str]) -> dict[str, Any]:
    """What a command of capfl makes of its words. Raises UsageError: a flag is not its, or one is missing."""
    found: click.Command = typer.main.get_command(app)
    while isinstance(found, click.Group):
        found = found.commands[words[0]]
        words = words[1:]
    return found.make_context("capfl", words).params


def services() -> list[tuple[str, dict[str, Any]]]:
    read = {path: yaml.safe_load(path.read_text()) for path in COMPOSE}
    return [(f"{path.name}:{name}", one) for path, file in read.items() for name, one in file["services"].items()]


def unit(path: Path) -> configparser.ConfigParser:
    made = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    made.optionxform = str  # type: ignore[assignment,method-assign]
    made.read(path)
    return made


def commands() -> list[tuple[str, str]]:
    """(where, command line) of all commands of capfl in the files and their comments, with values for ``$RUNS``."""
    written = [
        (name, found.replace("$RUNS", "--run winter --run spring"))
        for name, text in TEXTS.items()
        for found in re.findall(r"(?:bin/|server )capfl (flower [^`\n]+)", text)
    ]
    listed = [(where, shlex.join(one["command"])) for where, one in services()]
    return written + listed


@pytest.mark.parametrize(("where", "line"), commands())
def test_every_command_is_one_of_capfls_with_all_that_it_needs(where: str, line: str) -> None:
    parsed(shlex.split(line))


def test_a_command_that_is_none_would_be_noticed() -> None:
    good = ["flower", "server", "--keys", "/keys"]
    assert parsed(good)["port"] == 8443
    for wrong in (good[:2], [*good, "--portt", "1"], ["flower", "link"]):
        with pytest.raises((click.UsageError, KeyError)):
            parsed(wrong)
    assert len(commands()) >= 8


@pytest.mark.parametrize(("where", "service"), services())
def test_a_container_is_confined_and_has_what_its_command_names(where: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    mounts = [volume.split(":")[1] for volume in service["volumes"]]
    places = [word.partition("=")[2] or word for word in service["command"] if "/" in word]
    assert places
    for place in places:
        assert any(place == mount or place.startswith(f"{mount}/") for mount in mounts), place
    assert str(service["build"]["dockerfile"]) == "deploy/Dockerfile"
    assert (
        float(service.get("stop_grace_period", "60s").rstrip("s")) > 3 * 10
    )  # of which capfl takes 10 for its processes


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_is_confined_and_starts_again(path: Path) -> None:
    service = unit(path)["Service"]
    for key, value in {
        "User": "capfl", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
        "CapabilityBoundingSet": "", "UMask": "0077", "StateDirectory": "capfl", "StateDirectoryMode": "0700",
        "Restart": "on-failure", "KillMode": "mixed",
    }.items():  # fmt: skip
        assert service[key] == value, key
    assert service["RestartPreventExitStatus"] == "2"  # what an error that capfl raises on purpose ends with
    assert unit(path)["Install"]["WantedBy"] == "multi-user.target"
    state = re.findall(r"--(?:home|state) (\S+)", service["ExecStart"])
    assert all(place.startswith("/var/lib/capfl/") for place in state)
    assert len(state) == 1


def test_the_image_is_made_of_what_is_there_and_runs_as_nobody_special() -> None:
    text = TEXTS["Dockerfile"].replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    copied = [word.removeprefix("./") for name, rest in steps if name == "COPY" for word in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    ignored = TEXTS["Dockerfile.dockerignore"].splitlines()
    assert "*" in ignored  # and what is let in is what is copied, no keys or rows of the machine
    assert sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"'\.\[(.*?)\]'", text)
    assert set(asked.split(",")) <= set(extras)
    names = [name for name, _ in steps]
    assert dict(map(tuple, steps))["USER"] == "capfl"
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert dict(map(tuple, steps))["ENTRYPOINT"] == '["capfl"]'
