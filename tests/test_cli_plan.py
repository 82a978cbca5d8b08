"""`capfl plan` and `capfl bytes` on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import TINY_FLAGS, command, refused

# -- plan ------------------------------------------------------------------------------------------------


def test_plan_prints_tables() -> None:
    result = command("plan", *TINY_FLAGS, "--codec", "ternary", "--density", "0.2", "--mask", "top")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fedit on tiny: 1,792 adapter parameters, 2 of 2 clients (from the data)")
    for start in ("header", "positions", "scales", "values", "in all", "dense fp32", "peak memory", "time"):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert max(map(len, lines)) <= 80


def test_plan_prints_one_json_object_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[federation]\nrounds = 7\n")
    monkeypatch.chdir(tmp_path)
    flags = [flag for flag in TINY_FLAGS if "rounds" not in flag]
    words = (file, *flags, "--set", "codec.values=8bit", "--density", "0.1")
    for more in ([], ["--no-calibrate"]):
        result = command("plan", *words, "--json", *more)
        assert result.exit_code == 0, result.output
        said = json.loads(result.stdout)
        assert said["rounds"] == 7
        assert said["bytes_round_trip"] == said["bytes_up"] + said["bytes_down"]
        assert (said["seconds"] is None) == bool(more)
        assert said["memory"]["total"] > 0
    assert list(tmp_path.iterdir()) == [file]


def test_files_that_are_not_here_are_clients_and_broken_ones_an_error(tmp_path: Path) -> None:
    flags = ["--model", "tiny", "--partition", "by_task", "--data", f"{tmp_path}/north.jsonl,{tmp_path}/south.jsonl"]
    result = command("plan", *flags)
    assert result.exit_code == 0, result.output
    assert "2 of 2 clients (from the names in data.sets, because the data are not here)" in " ".join(
        result.stdout.split()
    )
    assert "no such file" in " ".join(result.stdout.split())
    (tmp_path / "north.jsonl").write_text("{")
    assert "north.jsonl" in refused("plan", *flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "elements"), [("meta-llama/Llama-3.2-3B", 2_293_760), ("mistralai/Mistral-7B-v0.1", 3_407_872)]
)
def test_large_models_are_planned_by_name_alone(model: str, elements: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "capfl", "plan", "--model", model, "--targets", "q_proj,v_proj", "--layers", "all",
         "--threads", "1", "--json"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "CAPFL_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["parameters"] == elements
    assert 75 * said["bytes_round_trip"] < said["dense_fp32_round_trip"] == 8 * elements


def test_mistakes_in_a_plan(tmp_path: Path) -> None:
    assert "--ronds: no such flag; did you mean --rounds or --turns?" in refused("plan", "--ronds", "5")
    assert "there is no such config file" in refused("plan", tmp_path / "gone.toml")
    assert "there is no method 'fedavgg'" in refused("plan", *TINY_FLAGS, "--method", "fedavgg")
    assert "cannot read the shapes of 'nobody/nothing'" in refused("plan", *TINY_FLAGS, "--model", "nobody/nothing")


# -- bytes -----------------------------------------------------------------------------------------------
