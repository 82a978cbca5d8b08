"""The command line: what it prints, and what it answers to mistakes: code 2, the culprit, the remedy, no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capfl import __version__
from capfl.config import load_config
from capfl.config.keys import all_keys, flags
from capfl.data import load_items, render
from capfl.methods import METHODS
from capfl.model.base import load_base
from capfl.model.export import load_adapter
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import encode
from commands import TINY_FLAGS, command, refused
from support import TINY, tiny_run


def tiny(*words: object, out: Path) -> list[object]:
    return ["run", *TINY_FLAGS, "--out", out, *words]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    tiny_run(out, method__name="fedit", train__learning_rate=0.05, codec__values="4bit", codec__density=0.3)
    return out


# -- what works ----------------------------------------------------------------------------------------


def test_a_run_prints_a_line_a_round_a_table_and_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[federation]\nrounds = 7\n[train]\nweight_decay = 0.1\n[method]\nname = "ca-pfl"\n')
    words = [flag for flag in TINY_FLAGS if "rounds" not in flag]
    result = command("run", file, *words, "--out", tmp_path / "run", "--rounds", 2, "--set", "seed=4")
    assert result.exit_code == 0, result.output
    config = load_config(tmp_path / "run" / "config.toml")
    assert (config.federation.rounds, config.train.weight_decay, config.method.name, config.seed) == (
        2,
        0.1,
        "ca-pfl",
        4,
    )
    lines = result.stdout.splitlines()
    assert [sum(f"round {n}/2" in line for line in lines) for n in (1, 2)] == [1, 1]
    assert sum(line.startswith("ca-pfl round 1: groups ") for line in lines) == 1
    for client in json.loads((tmp_path / "run" / "partition.json").read_text()):
        assert sum(line.startswith(f"{client} ") for line in lines) == 1
    assert lines[-1].endswith(f" s; everything is in {tmp_path / 'run'}")  # on one line, however long


def test_the_ca_pfl_papers_command_runs(tmp_path: Path) -> None:
    paper = (
        "run --method ca-pfl --model_path tiny --num_clients 4 --server_epochs 1 --client_epochs 1 --fraction 0.5 "
        "--batch_size 8 --learning_rate 1e-3 --lora_rank 4 --alpha_s 0.01 --alpha_p 0.01 --rff_output_dim 256 "
        "--max_length 64"
    )
    small = ["--data.items", 30, "--references", "", "--threads", 1, "--out", tmp_path / "run"]
    result = command(*paper.split(), *small)
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "run" / "rounds.jsonl").read_text())["clients"]) == 2


def test_a_finished_run_can_be_resumed(finished: Path) -> None:
    before = (finished / "state" / "server").read_bytes()
    assert command("run", "--resume", finished).exit_code == 0
    assert (finished / "state" / "server").read_bytes() == before


def test_version_and_help() -> None:
    assert command("--version").stdout == f"capfl {__version__}\n"
    for words in (["--help"], []):
        assert "Usage" in command(*words).output
    said = command("run", "--help").stdout
    assert "[federation]" in said
    assert "federation.rounds = 10  --rounds" in said


@pytest.mark.parametrize("columns", [80, 200])
def test_nothing_is_cut(columns: int, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
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
        lines = shown[name].splitlines()
        assert max(map(len, lines[:-1])) <= columns, name  # the folder of a run comes last, on one line
    for said in (shown["keys"], shown["help"]):
        found = re.findall(r"^  (\S+) = (.*)  --(\S+)\s*$", said, re.M)
        assert [key for key, _, _ in found] == list(all_keys())
        for key, default, flag in found:
            assert flags()[flag.replace("-", "_")] == key
            load_config(None, {key: default})  # what is shown can be given
    assert set(re.findall(r"^(\S+)\s*$", shown["methods"], re.M)) == set(METHODS)
    assert "exact" not in shown["methods"]
    for head in ("client", "train", "base", "shared", "personal"):
        assert head in shown["run"]
    for part in ("a round", "header", "scales", "values"):
        assert part in shown["bytes"]


# -- mistakes of a user ----------------------------------------------------------------------------------


def test_all_mistakes_of_a_config_at_once(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    assert f"{file}: there is no such config file" in refused("run", file)
    file.write_text("sede = 1\n[lora]\nrank = 0\n")
    said = refused("run", file, "--set", "train.step=3", "--ronds", "5")
    assert "ConfigError" in said
    for start in ("sede: no such key; did you mean seed?", "lora.rank: ", "train.step: ", "--ronds: no such flag"):
        assert any(line.startswith(start) for line in said.splitlines()), start


def test_a_data_file_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": \n')
    said = refused(*tiny("--data.sets", file, out=tmp_path / "run"))
    assert "DataError" in said
    assert f"{file}:2: " in said
    file.write_text("".join(json.dumps({"text": f"t {i}", "label": "xy"[i % 2]}) + "\n" for i in range(24)))
    said = refused(*tiny("--data", file, "--partition", "iid", "--clients", 25, out=tmp_path / "run"))
    assert "25 clients cannot share 24 items; lower partition.clients" in said


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--model", "./no/such/model"], "ModelError", "model.path: there is no folder ./no/such/model"),
        (["--method", "fedavgg"], "ConfigError", "method.name: unknown method 'fedavgg'"),
        (["--method", "local", "--alpha_f", "0.1"], "ConfigError", "method.alpha_f: local does not use it"),
        (["--data", "helpdsk"], "ConfigError", "data.sets: no data set is called 'helpdsk'"),
        (["--targets", "query"], "ConfigError", "no linear layer 'query'; choose from"),
    ],
)  # fmt: skip
def test_names_that_are_not_known(tmp_path: Path, flags: list[str], error: str, message: str) -> None:
    said = refused(*tiny(*flags, out=tmp_path / "run"))
    assert said.startswith(f"error: {error}")
    assert message in said


def test_a_loss_that_is_not_finite_names_client_round_and_step(tmp_path: Path) -> None:
    said = refused(*tiny("--learning_rate", "1e30", "--steps", 3, out=tmp_path / "run"))
    assert "client 'bank' failed in round 1 (TrainingError): the loss is nan at step 2; lower" in said


def test_a_folder_in_use(finished: Path, tmp_path: Path) -> None:
    before = (finished / "config.toml").read_bytes()
    assert f"--resume {finished}" in refused(*tiny(out=finished))
    assert (finished / "config.toml").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert "choose another folder" in refused(*tiny(out=tmp_path / "file"))


def test_what_cannot_be_resumed(tmp_path: Path, finished: Path) -> None:
    for more in (["--rounds", "3"], ["--set", "seed=1"], ["own.toml"]):
        said = refused("run", "--resume", finished, *more)
        assert "--resume takes the config that the run was started with" in said
    for place in (tmp_path, tmp_path / "gone", finished / "config.toml"):
        said = refused("run", "--resume", place)
        assert str(place) in said
        assert "not a run folder" in said


def test_a_process_of_its_own_prints_no_traceback_either(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "capfl.cli", "run", "--rounds", "0", "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "error: ConfigError"
    assert done.stderr.splitlines()[1].startswith("federation.rounds: ")
    assert not (tmp_path / "run").exists()


# -- capfl eval --------------------------------------------------------------------------------------------

HELPDESK = ["--data", "helpdesk", "--sites", 2, "--items", 30, "--threads", 1]


def test_eval_agrees_with_a_direct_computation(finished: Path) -> None:
    folder = finished / "adapters" / "global"
    result = command("eval", folder, "--only", "site=bank", *HELPDESK)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)

    config = load_config(None, TINY)
    items = [item for item in load_items(config.data, 0) if item.fields["site"] == "bank"]
    model = AdaptedModel(load_base(config.model), config.lora)
    model.write(load_adapter(folder)[0])
    hits, nll = 0, 0.0
    for item in items:
        example = encode(render(item, "letter"), "letter", model.base.tokenizer, 256)
        with torch.no_grad():
            logits = model.base.module(torch.from_numpy(example.train.ids.astype("int64"))[None]).logits[0, -1]
        letters = logits[list(example.letters)]
        hits += int(letters.argmax()) == item.answer
        nll -= float(torch.log_softmax(letters, 0)[item.answer])
    assert said["items"] == len(items) == 30
    assert (said["metric"], said["chance"]) == ("accuracy", pytest.approx(1 / 12))
    assert said["accuracy"] == hits / len(items) != said["base_accuracy"]  # so that the adapter was really used
    assert said["loss"] == pytest.approx(nll / len(items), rel=1e-4)


def test_what_cannot_be_evaluated(tmp_path: Path, finished: Path) -> None:
    assert f"{tmp_path} holds no PEFT adapter" in refused("eval", tmp_path, *HELPDESK)
    adapter = finished / "adapters" / "global"
    assert "--only site=moon: no item has these fields" in refused("eval", adapter, "--only", "site=moon", *HELPDESK)
    assert "--only site" in refused("eval", adapter, "--only", "site", *HELPDESK)
