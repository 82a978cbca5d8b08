"""`capfl compare`: it runs what is missing, believes only what fits, and its tables say what the runs say."""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
from pathlib import Path

import pytest
import tomli_w

from capfl.compare.folder import read_plan
from capfl.compare.results import read_results
from capfl.compare.spec import make_plan
from capfl.compare.table import make_rows
from capfl.config import load_config
from capfl.engines.serial import serial
from capfl.experiment import run
from commands import command, refused
from support import TINY

SOURCE = Path(__file__).parent.parent / "src"


def write_spec(folder: Path, **top: object) -> Path:
    """Three variants of a tiny run, one of them local, on one split."""
    (folder / "base.toml").write_text("[data]\nconflict = 0.25\n")
    spec = {
        "base": "base.toml",
        "seeds": [0, 1],
        "common": TINY | {"partition.validation": 0.2},
        "splits": {"two": {"about": "two desks & <b>"}},
        "variants": {
            "local": {"method.name": "local"},
            "fedit": {"train.learning_rate": 0.05},
            "short": {"federation.rounds": 1},
        },
    } | top
    path = folder / "spec.toml"
    path.write_text(tomli_w.dumps(spec))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A spec and a folder with all its runs, made in this process, which is faster."""
    place = tmp_path_factory.mktemp("compare")
    spec = write_spec(place)
    plan = make_plan(spec)
    for cell in plan.cells:
        settings = dict(cell.settings) | {"seed": cell.seed, "out": str(place / "out" / cell.name)}
        run(load_config(plan.base, settings), serial)
    result = command("compare", spec, "--out", place / "out")
    assert result.exit_code == 0, result.output
    assert "6 runs, 6 finished before" in result.output
    return spec, place / "out"


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(made[1], tmp_path / "out")
    return write_spec(tmp_path), tmp_path / "out"


def test_it_runs_what_is_missing_and_goes_on_with_what_was_interrupted(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = copied
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    kept = (out / "two.local.0" / "summary.json").stat().st_mtime_ns
    before = json.loads((out / "two.fedit.1" / "summary.json").read_text())
    shutil.rmtree(out / "two.fedit.1")
    (out / "two.short.1" / "summary.json").unlink()
    result = command("compare", spec, "--out", out, "--processes", 2)
    assert result.exit_code == 0, result.output
    assert "6 runs, 4 finished before" in result.output
    assert {line.split(" ", 1)[1] for line in result.output.splitlines() if line.endswith(" done")} == {
        "two.fedit.1 done", "two.short.1 done",
    }  # fmt: skip
    after = json.loads((out / "two.fedit.1" / "summary.json").read_text())
    assert after["clients"] == before["clients"]  # in a process of its own, the same bits
    assert (out / "two.local.0" / "summary.json").stat().st_mtime_ns == kept
    assert "WARNING" not in (out / "two.short.1.log").read_text()


def test_a_run_that_fails_is_named_and_the_others_are_in_the_table(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = copied
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    shutil.rmtree(out / "two.short.0")
    (out / "two.short.0").mkdir()
    (out / "two.short.0" / "something").touch()  # a run refuses a folder that is not empty
    result = command("compare", spec, "--out", out)
    assert result.exit_code == 1
    assert f"two.short.0 FAILED, see {out / 'two.short.0.log'}" in result.output
    assert "is not empty" in (out / "two.short.0.log").read_text()
    assert "Not finished: 1 of 6 runs: two.short.0." in (out / "table.md").read_text()
    assert json.loads((out / "comparison.json").read_text())["unfinished"] == ["two.short.0"]


def test_show_runs_nothing_and_writes_nothing(copied: tuple[Path, Path]) -> None:
    spec, out = copied
    shutil.rmtree(out / "two.short.1")
    for name in ("table.md", "table.csv", "comparison.json"):
        (out / name).unlink()
    before = sorted(path.name for path in out.iterdir())
    result = command("compare", spec, "--out", out, "--show")
    assert result.exit_code == 0, result.output
    assert "| short | 0 |" in result.stdout
    assert "Not finished: 1 of 6 runs: two.short.1." in result.stdout
    assert sorted(path.name for path in out.iterdir()) == before


def test_the_tables_say_what_the_runs_say(made: tuple[Path, Path]) -> None:
    spec, out = made
    runs = {name: [json.loads((out / f"two.{name}.{seed}" / "summary.json").read_text()) for seed in (0, 1)]
            for name in ("local", "fedit", "short")}  # fmt: skip
    said = json.loads((out / "comparison.json").read_text())
    rows = {row["label"]: row for row in said["rows"]}
    lines = {line["variant"]: line for line in csv.DictReader((out / "table.csv").read_text().splitlines())}
    for name, summaries in runs.items():
        personal = [statistics.fmean(row["personal"] for row in s["clients"]) for s in summaries]
        assert rows[name]["personal"] == pytest.approx(personal)
        assert float(lines[name]["personal_sd"]) == pytest.approx(statistics.stdev(personal))
        assert rows[name]["worst"] == [min(row["personal"] for row in s["clients"]) for s in summaries]
        up = [s["bytes"]["up"] / 2 / s["rounds"] for s in summaries]  # two clients
        assert rows[name]["bytes_up"] == pytest.approx(up)
        assert rows[name]["bytes_total"] == [s["bytes"]["total"] / 2 for s in summaries]
    apart = [a["personal"] - b["personal"] for mine, theirs in zip(runs["fedit"], runs["local"], strict=True)
             for a, b in zip(mine["clients"], theirs["clients"], strict=True)]  # fmt: skip
    found = rows["fedit"]["difference"]
    assert found["mean"] == pytest.approx(statistics.fmean(apart))
    assert found["low"] <= found["mean"] <= found["high"]
    assert found["crosses_zero"] == (found["low"] <= 1e-9 and found["high"] >= -1e-9)
    assert rows["local"]["difference"] is None
    assert said["command"] == ["capfl", *said["command"][1:]]
    assert "local" in (out / "table.md").read_text()
    assert read_plan(out)[0].cells == make_plan(spec).cells


def test_a_difference_that_crosses_zero_is_marked(made: tuple[Path, Path]) -> None:
    text = (made[1] / "table.md").read_text()
    rows = json.loads((made[1] / "comparison.json").read_text())["rows"]
    assert text.count("crosses 0 |") == sum(
        bool(row["difference"] and row["difference"]["crosses_zero"]) for row in rows
    )
    assert "crosses 0 |" in text


def test_every_clients_accuracies_are_beside_the_means(made: tuple[Path, Path]) -> None:
    for row in json.loads((made[1] / "comparison.json").read_text())["rows"]:
        assert len(row["clients"]) == len(row["seeds"])
        for model in ("base", "global", "personal", "local_only"):
            found = [[known[model] for known in each.values() if model in known] for each in row["clients"]]
            assert [sum(known) / len(known) for known in found if known] == pytest.approx(row[model])


def test_curves_give_bytes_to_a_target_and_accuracy_at_budgets(made: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = made
    spec = write_spec(tmp_path, target=0.001, score="global", baseline="fedit", budgets=[1.0, 1e12])
    plan = make_plan(spec)
    results = read_results(plan, out)
    rows = {row.label: row for row in make_rows(results, plan)}
    curve = results["two"]["fedit"][0].curve
    assert [point.round for point in curve] == [1, 2]
    reached = next(point.bytes for point in curve if point.accuracy >= 0.001)
    assert rows["fedit"].bytes_to_target[0] == reached
    assert set(rows["fedit"].within) == {1e12}  # nothing was validated for one byte
    assert rows["fedit"].within[1e12][0] == curve[-1].accuracy
    assert rows["local"].bytes_to_target == ()
    assert rows["local"].difference is None  # there is no global model
    assert command("compare", spec, "--out", out, "--show").stdout.count("to target: bytes") == 1


def test_runs_of_another_config_or_of_other_data_are_refused(copied: tuple[Path, Path], tmp_path: Path) -> None:
    spec, out = copied
    place = out / "two.fedit.1" / "run.json"
    place.write_text(place.read_text().replace('"data": "', '"data": "0'))
    said = refused("compare", spec, "--out", out, "--show")
    assert "two.fedit.1" in said
    assert "had other data or another partition" in said
    changed = write_spec(tmp_path, common=TINY | {"partition.validation": 0.1})
    said = refused("compare", changed, "--out", out)
    assert "two.local.0 was run with partition.validation = 0.2, the spec 0.1" in said
    (out / "two.local.0" / "summary.json").unlink()  # what is not finished must fit as well
    assert "two.local.0 was run with partition.validation" in refused("compare", changed, "--out", out)
    config = out / "two.local.0" / "config.toml"
    config.write_text("unheard_of = 1\n" + config.read_text())
    assert "two.local.0 is of another version of capfl: unheard_of" in refused("compare", spec, "--out", out)
    empty = refused("compare", spec, "--out", tmp_path / "empty", "--show")
    assert "no finished run" in empty
    assert "'x' is no whole number" in refused("compare", spec, "--seeds", "0,x")
