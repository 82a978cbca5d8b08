"""The command line: what it prints, and what it answers to mistakes: code 2, the culprit, the remedy, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capfl import adapter as algebra
from capfl.checkpoint import RunFolder
from capfl.config import load_config
from capfl.config.keys import all_keys, flags
from capfl.data import load_items, render
from capfl.methods import METHODS
from capfl.model.base import load_base
from capfl.model.export import load_adapter
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.score import Scorable, score
from capfl.model.tokens import encode
from commands import TINY_FLAGS, command, refused
from support import TINY, tiny_run


def tiny(*words: object, out: Path) -> list[object]:
    return ["run", *TINY_FLAGS, "--out", out, *words]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    tiny_run(out, train__learning_rate=0.05)
    return out


# -- what works ----------------------------------------------------------------------------------------


def test_a_run_prints_a_line_a_round_a_table_and_its_folder(tmp_path: Path) -> None:
    result = command(*tiny(out=tmp_path / "run"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert sum("round 1/2" in line for line in lines) == 1
    assert sum("round 2/2" in line for line in lines) == 1
    clients = json.loads((tmp_path / "run" / "partition.json").read_text())
    assert all(sum(line.strip("│ ").startswith(client) for line in lines) == 1 for client in clients)
    assert lines[-1].endswith(f" s; everything is in {tmp_path / 'run'}")  # on one line, however long
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_config_file_is_read_and_flags_lie_over_it(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[federation]\nrounds = 7\n[train]\naccumulate = 3\n[method]\nname = "local"\n')
    flags = [flag for flag in TINY_FLAGS if "rounds" not in flag]
    result = command("run", file, *flags, "--out", tmp_path / "run", "--rounds", 1, "--set", "seed=4")
    assert result.exit_code == 0, result.output
    config = load_config(tmp_path / "run" / "config.toml")
    assert (config.federation.rounds, config.train.accumulate, config.method.name, config.seed) == (1, 3, "local", 4)


def test_the_ca_pfl_papers_command_runs(tmp_path: Path) -> None:
    paper = (
        "run --model_path tiny --num_clients 4 --server_epochs 1 --client_epochs 1 --fraction 0.5 --batch_size 8 "
        "--learning_rate 1e-3 --lora_rank 4 --alpha_f 0.1 --max_length 64"
    )
    small = ["--data.items", 30, "--references", "", "--threads", 1, "--out", tmp_path / "run"]
    result = command(*paper.split(), *small)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "rounds.jsonl").read_text())
    assert len(record["clients"]) == 2


def test_a_finished_run_can_be_resumed(finished: Path) -> None:
    before = (finished / "state" / "server").read_bytes()
    result = command("run", "--resume", finished)
    assert result.exit_code == 0, result.output
    assert (finished / "state" / "server").read_bytes() == before


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["eval", "--help"], []])
def test_help(words: list[str]) -> None:
    result = command(*words)
    assert "Usage" in result.output
    assert result.exit_code in ((0,) if words else (0, 2))


def test_methods_lists_every_method() -> None:
    result = command("methods")
    assert result.exit_code == 0
    words = result.stdout.split()
    assert all(name in words for name in METHODS)
    assert "2305.05644" in result.stdout


def test_keys_lists_every_key_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    result = command("keys")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [words[0] for words in lines] == list(all_keys())
    defaults = {words[0]: words[2] for words in lines}
    assert defaults["lora.targets"] == "q_proj,v_proj"
    assert defaults["evaluation.personal"] == "true"
    assert defaults["partition.clients"] == "none"
    for key, default in defaults.items():  # what is shown can be given
        load_config(None, {key: default})
    shown = {words[0]: words[1] for words in lines}
    assert all(flags()[flag.removeprefix("--").replace("-", "_")] == key for key, flag in shown.items())
    assert (shown["federation.rounds"], shown["data.sets"]) == ("--rounds", "--data")
    assert (shown["model.path"], shown["lora.alpha"]) == ("--model", "--lora-alpha")


# -- mistakes of a user ----------------------------------------------------------------------------------


def test_a_config_file_that_is_not_there(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone.toml'}: there is no such config file" in refused("run", tmp_path / "gone.toml")


def test_all_mistakes_of_a_config_at_once(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("sede = 1\n[lora]\nrank = 0\n")
    said = refused("run", file, "--set", "train.step=3", "--ronds", "5")
    assert "ConfigError" in said
    for start in ("sede: no such key; did you mean seed?", "lora.rank: ", "train.step: ", "--ronds: no such flag"):
        assert any(line.startswith(start) for line in said.splitlines()), start


DATA = {
    "missing": (None, "no such file; check the path"),
    "empty": ("", "has no rows; write one JSON object a line"),
    "broken": ('{"text": "a", "label": "x"}\n{"text": "b", "label": \n', "own.jsonl:2: is not JSON"),
    "array": ("[]", "is one JSON array; write JSON Lines instead"),
    "keys": ('{"input": "a", "output": "b"}\n', "own.jsonl:1: no known format has the keys input, output; give"),
    "answer": (
        '{"question": "q", "choices": ["a", "b"], "answer": "a"}\n'
        '{"question": "q", "choices": ["a", "b"], "answer": "c"}\n',
        "own.jsonl:2: field 'answer' is 'c', which is no option; give one of A, B, or its text",
    ),
    "index": ('{"question": "q", "choices": ["a", "b"], "answer": 2}\n', "an index counts from 0: give 0 to 1"),
}


@pytest.mark.parametrize("kind", DATA)
def test_a_data_file_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
    content, message = DATA[kind]
    file = tmp_path / "own.jsonl"
    if content is not None:
        file.write_text(content)
    said = refused(*tiny("--data.sets", file, out=tmp_path / "run"))
    assert "DataError" in said
    assert str(file) in said
    assert message in said


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"text": f"t {i}", "label": "xy"[i % 2]}) + "\n" for i in range(24)))
    return file


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--partition", "iid", "--clients", 25], "25 clients cannot share 24 items; lower partition.clients"),
        (["--partition", "iid", "--clients", 3], "3 of 3 clients have fewer than partition.min_items = 10 items"),
        (["--partition", "by:site"], "no item has the field 'site'; choose from label, task"),
        (["--partition", "iid", "--clients", 2, "--max_length", 8, "--scoring", "text", "--lora-layers", "top:9"],
         "lora.layers: top:9 of a model that has 4 layers"),
    ],
)  # fmt: skip
def test_clients_and_items_that_do_not_go_together(
    tmp_path: Path, labels: Path, flags: list[object], message: str
) -> None:
    assert message in refused(*tiny("--data", labels, *flags, out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--model", "./no/such/model"], "ModelError", "model.path: there is no folder ./no/such/model; give a folder"),
        (["--model", "nobody/nothing"], "ModelError", "model.path: cannot load 'nobody/nothing'"),
        (["--method", "fedavgg"], "ConfigError",
         "method.name: unknown method 'fedavgg'; choose from ca-pfl, fedit, fedprox, ffa-lora, rolora"),
        (["--method", "local", "--alpha_f", "0.1"], "ConfigError", "method.alpha_f: local does not use it"),
        (["--data", "helpdsk"], "ConfigError",
         "data.sets: no data set is called 'helpdsk' (did you mean 'helpdesk'?)"),
        (["--data", "boolq", "--data-dir", "/no/such/folder"], "DataError", "no such folder; give --data-dir a folder"),
        (["--targets", "query"], "ConfigError", "no linear layer 'query'; choose from"),
        (["--quantization", "4bit", "--device", "cpu"], "ConfigError", "4bit needs CUDA"),
    ],
)  # fmt: skip
def test_names_that_are_not_known(tmp_path: Path, flags: list[str], error: str, message: str) -> None:
    said = refused(*tiny(*flags, out=tmp_path / "run"))
    assert said.startswith(f"error: {error}")
    assert message in said


def test_a_loss_that_is_not_finite_names_client_round_and_step(tmp_path: Path) -> None:
    said = refused(*tiny("--learning_rate", "1e30", out=tmp_path / "run"))
    assert "client 'bank' failed in round 1 (TrainingError): " in said
    assert "not finite after step 1; lower train.learning_rate" in said
    said = refused(*tiny("--learning_rate", "1e30", "--steps", 3, out=tmp_path / "longer"))
    assert "client 'bank' failed in round 1 (TrainingError): the loss is nan at step 2; lower" in said


def test_an_answer_that_is_too_long_names_the_item(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    rows = [{"prompt": f"p {i}", "completion": "word " * 20} for i in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)))
    said = refused(*tiny("--data", file, "--partition", "iid", "--clients", 2, "--max-length", 16, out=tmp_path / "r"))
    assert "('p " in said
    assert "an answer of 101 tokens does not fit into data.max_length = 16; raise max_length" in said


def test_a_folder_in_use(finished: Path, tmp_path: Path) -> None:
    before = (finished / "config.toml").read_bytes()
    assert f"--resume {finished}" in refused(*tiny(out=finished))
    assert (finished / "config.toml").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert "choose another folder" in refused(*tiny(out=tmp_path / "file"))


@pytest.mark.parametrize("more", [["--rounds", "3"], ["--set", "seed=1"], ["own.toml"]])
def test_resume_takes_nothing_else(finished: Path, more: list[str]) -> None:
    assert "--resume takes the config that the run was started with" in refused("run", "--resume", finished, *more)
    assert "--resume takes the config that the run was started with" in refused("run", *more, "--resume", finished)


def test_resume_of_what_is_no_run(tmp_path: Path, finished: Path) -> None:
    for place in (tmp_path, tmp_path / "gone", finished / "config.toml"):
        said = refused("run", "--resume", place)
        assert str(place) in said
        assert "not a run folder" in said


def test_a_damaged_state_is_not_resumed(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    state = tmp_path / "run" / "state" / "server"
    state.write_bytes(state.read_bytes()[:-10])
    assert "CheckpointError" in refused("run", "--resume", tmp_path / "run")


def test_a_process_of_its_own_prints_no_traceback_either(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "capfl.cli", "run", "--rounds", "0", "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
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
    found = {}
    for name, adapter in (("accuracy", load_adapter(folder)[0]), ("base_accuracy", model.initial_adapter(0))):
        model.write(adapter)
        hits, nll = [], 0.0
        for item in items:
            example = encode(render(item, "letter"), "letter", model.base.tokenizer, 256)
            with torch.no_grad():
                logits = model.base.module(torch.from_numpy(example.train.ids.astype("int64"))[None]).logits[0, -1]
            letters = logits[list(example.letters)]
            hits.append(int(letters.argmax()) == item.answer)
            nll -= float(torch.log_softmax(letters, 0)[item.answer])
        found[name] = sum(hits) / len(hits)
        if name == "accuracy":
            found["loss"] = nll / len(hits)
    assert said["items"] == len(items) == 30
    assert (said["metric"], said["chance"]) == ("accuracy", pytest.approx(1 / 12))
    assert said["accuracy"] == found["accuracy"]
    assert said["base_accuracy"] == found["base_accuracy"]
    assert said["loss"] == pytest.approx(found["loss"], rel=1e-4)
    assert said["accuracy"] != said["base_accuracy"]  # so that the adapter was really used


@pytest.mark.parametrize("method", ["fedex-lora", "flora", "hetlora"])
def test_eval_of_a_saved_adapter_is_that_of_the_patched_base(tmp_path: Path, method: str) -> None:
    """Saved, the patch is more ranks: 16 or 32 where the run's adapter has 8."""
    tiny_run(tmp_path / "run", method__name=method, train__learning_rate=0.05, train__steps=12)
    said = json.loads(command("eval", tmp_path / "run" / "adapters" / "global", *HELPDESK).stdout)

    config = load_config(None, TINY)
    model = AdaptedModel(load_base(config.model), config.lora)
    state = RunFolder(tmp_path / "run").server(model.initial_adapter(0))
    assert state is not None
    tokenizer = model.base.tokenizer
    examples = [encode(render(item, "letter"), "letter", tokenizer, 256) for item in load_items(config.data, 0)]
    with HiddenCache("off", 0) as cache:
        found = score(model, cache, Scorable("all", examples), state.whole, 32)
        factors = score(model, cache, Scorable("all", examples), algebra.unpatched(state.whole), 32)
    assert said["items"] == found.total == 60
    assert said["accuracy"] == found.accuracy
    assert said["loss"] == pytest.approx(found.loss, rel=1e-5)
    if method != "hetlora":
        assert said["loss"] != pytest.approx(factors.loss, rel=1e-3)  # the patch is in it


def test_eval_of_completions_counts_tokens(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"prompt": "The sky is", "completion": " blue"}\n')
    said = json.loads(command("eval", finished / "adapters" / "global", "--data", file, "--threads", 1).stdout)
    assert (said["items"], said["metric"], said["chance"]) == (1, "token_accuracy", None)


def test_eval_of_a_folder_without_adapter(tmp_path: Path, finished: Path) -> None:
    for place in (tmp_path, tmp_path / "gone", finished):
        said = refused("eval", place, *HELPDESK)
        assert f"{place} holds no PEFT adapter" in said


def test_eval_with_no_item_left(finished: Path) -> None:
    said = refused("eval", finished / "adapters" / "global", "--only", "site=moon", *HELPDESK)
    assert "--only site=moon: no item has these fields" in said


def test_eval_with_a_wrong_filter(finished: Path) -> None:
    said = refused("eval", finished / "adapters" / "global", "--only", "site", *HELPDESK)
    assert "--only site" in said
