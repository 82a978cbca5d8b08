"""`capfl plan` and `capfl bytes` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import TINY_FLAGS, command, refused
from support import tiny_run


def test_plan_prints_tables_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sparse = ("--method", "fedit", "--codec", "ternary", "--density", 0.2, "--mask", "top")
    result = command("plan", *TINY_FLAGS, *sparse, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fedit on tiny: 1,792 adapter parameters, 2 of 2 clients (from the data)")
    for start in ("header", "positions", "scales", "values", "in all", "dense fp32", "peak memory", "time"):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert max(map(len, lines)) <= 80
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_one_json_object(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[federation]\nrounds = 7\n")
    flags = [flag for flag in TINY_FLAGS if "rounds" not in flag]
    result = command("plan", file, *flags, "--set", "codec.values=8bit", "--density", "0.1", "--json", "--no-calibrate")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["rounds"] == 7
    assert said["bytes_round_trip"] == said["bytes_up"] + said["bytes_down"]
    assert (said["seconds"], said["seconds_reason"]) == (None, "--no-calibrate was given")
    assert said["memory_advice"] == {
        "room": said["memory_advice"]["room"], "fits": True, "settings": {}, "bytes": said["memory"]["total"],
    }  # fmt: skip


def test_files_that_are_not_here_are_clients_and_broken_ones_an_error(tmp_path: Path) -> None:
    flags = ["--model", "tiny", "--partition", "by_task", "--data", f"{tmp_path}/north.jsonl,{tmp_path}/south.jsonl"]
    result = command("plan", *flags)
    assert result.exit_code == 0, result.output
    assert "2 of 2 clients (from the names in data.sets, as the data are not here)" in " ".join(result.stdout.split())
    assert "no such file" in " ".join(result.stdout.split())
    (tmp_path / "north.jsonl").write_text("{")
    assert "north.jsonl" in refused("plan", *flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "elements", "most"),
    [("meta-llama/Llama-3.2-3B", 2_293_760, 200_000), ("mistralai/Mistral-7B-v0.1", 3_407_872, 300_000)],
)
def test_large_models_are_planned_by_name_alone(model: str, elements: int, most: int) -> None:
    words = ["--model", model, "--method", "fedit", "--codec", "ternary", "--density", "0.05", "--mask", "top"]
    said = json.loads(command("plan", *words, "--threads", 1, "--json").stdout)
    assert said["parameters"] == elements
    assert said["bytes_round_trip"] <= most
    assert said["dense_fp32_round_trip"] == pytest.approx(8 * elements, rel=1e-4)


def test_mistakes_in_a_plan(tmp_path: Path) -> None:
    assert "--ronds: no such flag; did you mean --rounds?" in refused("plan", "--ronds", "5")
    assert "there is no such config file" in refused("plan", tmp_path / "gone.toml")


def test_bytes_agree_with_the_summary(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", codec__values="4bit", codec__density=0.3)
    said = json.loads(command("bytes", tmp_path / "run", "--json").stdout)
    saved = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (said["bytes_up"], said["bytes_down"]) == (saved["bytes"]["up"], saved["bytes"]["down"])
    by_client = {row["id"]: (row["bytes_up"], row["bytes_down"]) for row in saved["clients"]}
    assert {row["client"]: (row["bytes_up"], row["bytes_down"]) for row in said["clients"]} == by_client
    result = command("bytes", tmp_path / "run")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    for client in (*by_client, "all"):
        assert sum(line[:1] == [client] for line in lines) == 2, client
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_bytes_of_what_is_no_run(tmp_path: Path) -> None:
    said = refused("bytes", tmp_path)
    assert said.startswith("error: CheckpointError")
    assert "not a run folder" in said
