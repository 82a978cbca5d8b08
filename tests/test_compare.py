"""`capfl compare`: it runs what is missing, believes only what fits, and its tables say what the runs say."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
import tomli_w

from capfl.compare.rows import load_rows
from capfl.compare.runs import _last_words
from capfl.compare.spec import make_plan
from capfl.config.load import from_toml, to_toml
from capfl.engines.serial import serial
from capfl.errors import ConfigError
from capfl.experiment import run
from commands import command, refused
from support import TINY

ROWS = """
from __future__ import annotations
from dataclasses import dataclass, replace
from typing import ClassVar
from capfl.config.schema import MethodConfig
from capfl.methods import build

@dataclass
class Own:
    name: ClassVar[str] = "mine"

METHODS = {"mine": replace(build(MethodConfig(name="fedit")), name=Own.name)}
"""


def write_spec(folder: Path, **top: object) -> Path:
    """Three variants of a tiny run, one of them local, on one split with two seeds."""
    (folder / "base.toml").write_text("[data]\nconflict = 0.25\n")
    spec = {
        "base": "base.toml",
        "seeds": [0, 1],
        "common": TINY | {"partition.validation": 0.2, "federation.rounds": 1},
        "splits": {"two": {"about": "two desks"}},
        "variants": {
            "local": {"method.name": "local"},
            "fedit": {"method.name": "fedit", "train.learning_rate": 0.05},
            "longer": {"method.name": "fedit", "federation.rounds": 2},
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
    for cell in make_plan(spec).cells:
        run(from_toml(to_toml(cell.config), {"out": str(place / "out" / cell.name)}), serial)
    result = command("compare", spec, "--out", place / "out")
    assert result.exit_code == 0, result.output
    assert "6 runs, 6 finished before" in result.output
    return spec, place / "out"


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(made[1], tmp_path / "out")
    return write_spec(tmp_path), tmp_path / "out"


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the runs that are started; they run in this process, which is faster."""
    handed: list[list[str]] = []

    def start(words: list[str], **files: object) -> object:
        handed.append(words)
        done = command(*words[3:])
        return type("Done", (), {"returncode": done.exit_code})

    monkeypatch.setattr("capfl.compare.runs.subprocess.run", start)
    return handed


def test_it_goes_on_to_the_same_bits_and_names_what_fails(copied: tuple[Path, Path], started: list[list[str]]) -> None:
    spec, out = copied
    kept = (out / "two.local.0" / "summary.json").stat().st_mtime_ns
    before = summary_of(out / "two.longer.1")
    shutil.rmtree(out / "two.longer.1")
    (out / "two.fedit.1" / "summary.json").unlink()
    (out / "two.fedit.1" / "state" / "server").write_bytes(b"damaged")
    shown = command("compare", spec, "--out", out, "--show")
    assert "| longer | 0 |" in shown.stdout
    assert "Not finished: 2 of 6 runs: two.fedit.1, two.longer.1." in shown.stdout
    assert started == []
    result = command("compare", spec, "--out", out)
    assert result.exit_code == 1
    assert "6 runs, 4 finished before" in result.output
    assert [words[3:] for words in started] == [
        ["run", "--resume", str(out / "two.fedit.1")], ["run", str(out / "two.longer.1.toml")],
    ]  # fmt: skip
    assert summary_of(out / "two.longer.1")["clients"] == before["clients"]
    assert (out / "two.local.0" / "summary.json").stat().st_mtime_ns == kept
    assert f"two.fedit.1 FAILED, see {out / 'two.fedit.1.log'}" in result.output
    assert json.loads((out / "comparison.json").read_text())["unfinished"] == ["two.fedit.1"]
    assert "Not finished: 1 of 6 runs: two.fedit.1." in (out / "table.md").read_text()


def test_the_tables_say_what_the_runs_say(made: tuple[Path, Path]) -> None:
    _, out = made
    rows = {row["label"]: row for row in json.loads((out / "comparison.json").read_text())["rows"]}
    for name, row in rows.items():
        runs = [summary_of(out / f"two.{name}.{seed}") for seed in (0, 1)]
        scores = [{client["id"]: client["personal"] for client in run["clients"]} for run in runs]
        assert [{client: own["personal"] for client, own in seed.items()} for seed in row["clients"]] == scores
        assert row["personal"] == pytest.approx([statistics.fmean(own.values()) for own in scores])
        assert row["bytes_up"] == pytest.approx([run["bytes"]["up"] / 2 / run["rounds"] for run in runs])  # two clients
    assert (out / "table.md").read_text().count("crosses 0 |") == sum(
        bool(row["difference"] and row["difference"]["crosses_zero"]) for row in rows.values()
    )
    figure = (out / "figure.svg").read_text()
    assert [name for name in (*rows, "two, accuracy, %") if f">{name}</text>" not in figure] == []


def test_runs_of_another_config_or_of_other_data_are_refused(copied: tuple[Path, Path], tmp_path: Path) -> None:
    spec, out = copied
    place = out / "two.fedit.1" / "run.json"
    place.write_text(place.read_text().replace('"data": "', '"data": "0'))
    said = refused("compare", spec, "--out", out, "--show")
    assert "two.fedit.1" in said
    assert "had different data or partitions" in said
    changed = write_spec(tmp_path, common=TINY | {"partition.validation": 0.1, "federation.rounds": 1})
    (out / "two.local.0" / "summary.json").unlink()  # what is not finished must fit as well
    assert "two.local.0 was run with partition.validation = 0.2, the spec 0.1" in refused(
        "compare", changed, "--out", out
    )
    config = out / "two.local.0" / "config.toml"
    config.write_text("unheard_of = 1\n" + config.read_text())
    assert "two.local.0 is of another version of capfl: unheard_of" in refused("compare", spec, "--out", out)
    assert "no finished run" in refused("compare", spec, "--out", tmp_path / "empty", "--show")
    assert "'x' is not a whole number" in refused("compare", spec, "--seeds", "0,x")


def test_variants_may_be_methods_of_a_file(tmp_path: Path, started: list[list[str]]) -> None:
    (tmp_path / "own.py").write_text(ROWS)
    spec = write_spec(tmp_path, rows="own.py", seeds=[0], variants={"a": {"method.name": "mine"}})
    out = tmp_path / "out"
    result = command("compare", spec, "--out", out)
    assert result.exit_code == 0, result.output
    assert started[0][-3:] == [str(out / "two.a.0.toml"), "--rows", str(tmp_path / "own.py")]
    assert summary_of(out / "two.a.0")["method"] == "mine"
    (tmp_path / "own.py").write_text(ROWS + "# changed")
    assert "own.py has changed since the runs in" in refused("compare", spec, "--out", out)
    spec = write_spec(tmp_path, rows="own.py", seeds=[0], variants={"a": {"method.name": "yours"}})
    assert "two.a: method.name: no method 'yours'" in refused("compare", spec, "--out", tmp_path / "other")
    for text, message in (
        ("x = 1", "own.py: has no table METHODS"),
        ("METHODS = {'a': 3}", "METHODS['a'] is a int; give a capfl.methods.Method"),
        ("import math\nmath.sqrt(-1)", "own.py, line 2: ValueError when it was executed: "),
    ):
        (tmp_path / "own.py").write_text(text)
        assert message in refused("compare", spec, "--out", tmp_path / "other")
    (tmp_path / "own.py").unlink()
    assert "own.py: cannot be read" in refused("compare", spec, "--out", tmp_path / "other")


def test_the_line_of_a_file_of_methods_is_said_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("\nx = y\n")
    with pytest.raises(ConfigError, match=r"^own\.py, line 2: NameError"):
        load_rows(Path("own.py"))


def test_a_failed_run_is_named_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("a round\nerror: DataError\nno rows\n\n")
    assert (_last_words(tmp_path / "a.log"), _last_words(tmp_path / "b.log")) == (": no rows", "")
