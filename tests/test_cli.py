"""The command line: what it prints, and what it answers to mistakes: code 2, the culprit, the remedy, no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from capfl import __version__
from capfl.cli.terminal import STEPS, errors
from capfl.config import load_config
from capfl.config.keys import all_keys, flags
from capfl.errors import DataError
from capfl.files import locked
from capfl.methods import METHODS
from commands import TINY_FLAGS, command, refused
from support import tiny_run

PUBLISHED = (
    "run --model_path tiny --num_clients 4 --server_epochs 1 --client_epochs 1 --fraction 0.5 --batch_size 8 "
    "--learning_rate 1e-3 --lora_rank 4 --alpha_s 0.01 --alpha_p 0.01 --rff_output_dim 256 --max_length 64"
)
HELPDESK = ["--data", "helpdesk", "--sites", 2, "--items", 30, "--threads", 1]


def tiny(*words: object, out: Path) -> list[object]:
    return ["run", *TINY_FLAGS, "--out", out, *words]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    tiny_run(out, method__name="fedit", train__learning_rate=0.05, codec__values="4bit", codec__density=0.3)
    return out


# -- what works ----------------------------------------------------------------------------------------


def test_a_run_prints_a_line_a_round_a_table_and_its_folder(tmp_path: Path) -> None:
    file, out = tmp_path / "own.toml", tmp_path / "run"
    file.write_text('[federation]\nrounds = 7\n[train]\nschedule = "linear"\n[method]\nname = "ca-pfl"\n')
    words = [flag for flag in TINY_FLAGS if "rounds" not in flag and "method" not in flag]
    result = command("run", file, *words, "--out", out, "--rounds", 2, "--set", "seed=4")
    assert result.exit_code == 0, result.output
    config = load_config(out / "config.toml")
    assert (config.federation.rounds, config.train.schedule, config.method.name, config.seed) == (
        2, "linear", "ca-pfl", 4,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert [sum(f"round {n}/2" in line for line in lines) for n in (1, 2)] == [1, 1]
    assert sum(line.startswith("ca-pfl round 1: groups ") for line in lines) == 1
    assert {"bank", "hospital", "mean"} <= {line.split(" ")[0] for line in lines}
    assert lines[-1].endswith(f" s; all files are in {out}")  # on one line, however long


def test_the_published_command_runs(tmp_path: Path) -> None:
    small = ["--data", "helpdesk", "--data.items", 30, "--references", "", "--threads", 1, "--out", tmp_path / "run"]
    result = command(*PUBLISHED.split(), *small)
    assert result.exit_code == 0, result.output
    assert load_config(tmp_path / "run" / "config.toml").method.name == "ca-pfl"
    assert len(json.loads((tmp_path / "run" / "rounds.jsonl").read_text())["clients"]) == 2


def test_the_demo_finds_its_config() -> None:
    assert "federation.rounds" in refused("demo", "--rounds", 0)


def test_version_and_help() -> None:
    assert command("--version").stdout == f"capfl {__version__}\n"
    assert "Usage" in command("--help").output
    said = command().stdout
    assert [first in said for first in STEPS] == [True] * 5
    for panel in ("Run", "Look at runs", "Use an adapter", "Look things up", "Over a network"):
        assert f"─ {panel} ─" in command("--help").stdout


def test_nothing_is_cut_at_80_columns(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    before = (finished / "state" / "server").read_bytes()
    shown = {}
    for name, words in {
        "keys": ["keys"],
        "methods": ["methods"],
        "help": ["run", "--help"],
        "run": ["run", "--resume", finished],
        "bytes": ["bytes", finished],
        "plan": ["plan", *TINY_FLAGS, "--codec", "ternary", "--mask", "top", "--no-calibrate"],
    }.items():
        result = command(*words)
        assert result.exit_code == 0, result.output
        shown[name] = result.stdout
        assert "…" not in shown[name], name
        lines = [line for line in shown[name].splitlines() if str(finished) not in line]  # a path is on one line
        assert max(map(len, lines)) <= 80, name
    for said in (shown["keys"], shown["help"]):
        found = re.findall(r"^  (\S+) = (.*?)\s+--(\S+)\s*$", said, re.M)
        assert [key for key, _, _ in found] == list(all_keys())
        for key, default, flag in found:
            assert flags()[flag.replace("-", "_")] == key
            load_config(None, {key: default})  # what is shown can be given
    assert set(re.findall(r"^(\S+)\s*$", shown["methods"], re.M)) == set(METHODS)
    for head in ("client", "train", "base", "shared", "personal"):
        assert head in shown["run"]
    for part in ("messages", "header", "scales", "values"):
        assert part in shown["bytes"]
    assert (finished / "state" / "server").read_bytes() == before  # a finished run, gone on with


# -- mistakes of a user ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--model", "./no/such/model"], "ModelError", "model.path: there is no folder ./no/such/model"),
        (["--data", "nothing.jsonl"], "DataError", "nothing.jsonl"),
        (["--method", "fedavgg"], "ConfigError", "method.name: there is no method 'fedavgg'"),
        (["--learning_rate", "1e30", "--steps", 3], "ClientError",
         "client 'bank' failed in round 1 (train): the loss is nan at step 2; lower"),
    ],
)  # fmt: skip
def test_what_cannot_be_run(tmp_path: Path, flags: list[str], error: str, message: str) -> None:
    said = refused(*tiny(*flags, out=tmp_path / "run"))
    assert said.startswith(f"error: {error}")
    assert message in said


WRONG = """
from dataclasses import replace
from capfl.config.schema import MethodConfig
from capfl.methods import build
from capfl.methods.combine import WeightedMean
from capfl.methods.take_home import NearServer

class AtServer(WeightedMean):
    def start(self, adapter, round):
        return adapter.nothing

class AtClient(NearServer):
    def penalty(self, received):
        return received.nothing

class Unlike(WeightedMean):
    def start(self):
        return None

METHODS = {
    "server": replace(build(MethodConfig(name="fedit")), name="server", combine=AtServer()),
    "client": replace(build(MethodConfig(name="ditto")), name="client", takes_home=AtClient()),
    "unlike": replace(build(MethodConfig(name="fedit")), name="unlike", combine=Unlike()),
}
"""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("server", "AttributeError in AtServer.start (OWN, line 10): 'dict' object has no attribute 'nothing'; "),
        ("client", "failed in round 1 (train): AttributeError in AtClient.penalty (OWN, line 14): 'dict' object has"),
        ("unlike", "TypeError in Aggregation._fold ("),  # no line of the file was running
    ],
)
def test_a_mistake_in_a_method_of_ones_own_is_a_sentence(tmp_path: Path, method: str, said: str) -> None:
    (tmp_path / "own.py").write_text(WRONG)
    error = refused(*tiny("--method", method, out=tmp_path / "run"), "--rows", tmp_path / "own.py")
    assert said.replace("OWN", str(tmp_path / "own.py")) in error
    assert error.endswith(f"; traceback in {tmp_path / 'run/traceback.txt'}\n")
    assert (tmp_path / "run/traceback.txt").read_text().startswith("Traceback (most recent call last)")


def test_a_folder_in_use_and_what_cannot_be_resumed(finished: Path, tmp_path: Path) -> None:
    before = (finished / "config.toml").read_bytes()
    assert f"--resume {finished}" in refused(*tiny(out=finished))
    assert (finished / "config.toml").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert "file is a file; give a new or empty folder" in refused(*tiny(out=tmp_path / "file"))
    for more in (["--rounds", "3"], ["--set", "seed=1"], ["own.toml"]):
        said = refused("run", "--resume", finished, *more)
        assert "--resume takes the config that the run was started with" in said
    for place in (tmp_path, tmp_path / "gone", finished / "config.toml"):
        said = refused("run", "--resume", place)
        assert str(place) in said
        assert "not a run folder" in said
    with locked(finished):  # by whoever goes on with it already
        assert f"{finished} is in use by process {os.getpid()} on " in refused("run", "--resume", finished)


def test_a_process_of_its_own_prints_no_traceback_either(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "capfl", "run", "--rounds", "0", "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "error: ConfigError"
    assert done.stderr.splitlines()[1].startswith("federation.rounds: ")
    assert not (tmp_path / "run").exists()


# -- capfl eval --------------------------------------------------------------------------------------------


def test_items_of_an_evaluation_are_chosen_by_fields(tmp_path: Path, finished: Path) -> None:
    assert f"{tmp_path} holds no PEFT adapter" in refused("eval", tmp_path, *HELPDESK)
    adapter = finished / "adapters" / "global"
    said = command("eval", adapter, "--only", "site=bank", *HELPDESK)
    assert json.loads(said.stdout)["items"] == 30
    assert "--only site=moon: no item has these fields" in refused("eval", adapter, "--only", "site=moon", *HELPDESK)
    assert "--only site" in refused("eval", adapter, "--only", "site", *HELPDESK)


def test_line_100_is_no_emoji(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), errors():
        raise DataError("rows.jsonl:100: field 'completion' is empty")
    assert "rows.jsonl:100: field" in capsys.readouterr().err
