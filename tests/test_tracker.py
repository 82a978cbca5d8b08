"""`--tracker`, callbacks and progress: what they are told of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from rich.console import Console

from capfl.engines.serial import serial
from capfl.errors import ClientError
from capfl.experiment import run
from capfl.report.progress import Callback, Callbacks, Printer, progress_of
from capfl.types import RoundRecord
from commands import TINY_FLAGS, command, refused
from support import tiny_config


class Recorder(GeneralTracker):
    """A tracker that keeps what it is given."""

    name = "recorder"
    requires_logging_directory = True
    made: list[Recorder]

    def __init__(self, project: str, folder: str) -> None:
        super().__init__()
        self.folder, self.config, self.finished = folder, {}, False
        self.values: dict[str, tuple[int, float]] = {}
        self.steps: list[int] = []
        self.made.append(self)

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **more: object) -> None:
        assert step is not None
        self.steps.append(step)
        self.values |= {f"{name}@{step}": value for name, value in values.items()}

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "made", [], raising=False)
    return Recorder.made


def test_rounds_and_summary_arrive(runs: Path, recorders: list[Recorder]) -> None:
    flags = [*(flag for flag in TINY_FLAGS if "references" not in flag), "--references", "local", "--method", "fedit"]
    result = command("run", *flags, "--out", runs, "--tracker", "recorder")
    assert result.exit_code == 0, result.output
    (found,) = recorders
    assert found.folder == str(runs / "recorder")
    assert found.config["train.steps"] == "2"
    assert found.steps == [1, 2, 3, 4, 4]  # the reference's rounds follow: wandb takes no step twice
    for record in map(json.loads, (runs / "rounds.jsonl").read_text().splitlines()):
        step, losses = record["round"], record["losses"].values()
        assert found.values[f"fedit/loss@{step}"] == pytest.approx(sum(losses) / len(losses))
        assert found.values[f"fedit/bytes_up@{step}"] == sum(
            entry["bytes"] for entry in record["ledger"] if entry["direction"] == "up"
        )
        assert f"local/loss@{step + 2}" in found.values
    for model, means in json.loads((runs / "summary.json").read_text())["metrics"]["accuracy"]["models"].items():
        assert found.values.get(f"test accuracy/{model}/mean@4") == (means and means["mean"])
    assert found.finished


def test_tensorboard_has_the_numbers_of_the_records(runs: Path) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="no tensorboard: pip install -c constraints.txt tensorboard, or make test-tools",
    )
    result = command("run", *TINY_FLAGS, "--out", runs, "--tracker", "tensorboard")
    assert result.exit_code == 0, result.output
    found: dict[str, dict[int, float]] = {}
    for place in {file.parent for file in (runs / "tensorboard").rglob("events.out.*")}:
        own = events.EventAccumulator(str(place)).Reload()
        for name in own.Tags()["scalars"]:
            found.setdefault(name, {}).update({event.step: event.value for event in own.Scalars(name)})
    records = [json.loads(line) for line in (runs / "rounds.jsonl").read_text().splitlines()]
    losses = {record["round"]: sum(record["losses"].values()) / len(record["losses"]) for record in records}
    assert found["fedit/loss"] == pytest.approx(losses)
    assert set(found["fedit/bytes_up"]) == {1, 2}


def test_it_is_finished_when_the_run_fails(
    runs: Path, recorders: list[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ClientError("train", 1, "bank", "no more")

    monkeypatch.setattr("capfl.rounds.run_round", fail)
    assert "no more" in refused("run", *TINY_FLAGS, "--out", runs, "--tracker", "recorder")
    assert recorders[0].finished


def test_a_tracker_that_is_not_there_is_named_before_anything_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    assert "install it with: pip install trackio" in refused("run", *TINY_FLAGS, "--out", runs, "--tracker", "trackio")
    said = refused("run", *TINY_FLAGS, "--out", runs, "--tracker", "tensorbored")
    assert "choose from aim, " in said
    assert not runs.exists()


def test_callbacks_are_called_in_order(runs: Path) -> None:
    class Names(Callback):
        def __init__(self) -> None:
            self.seen: list[object] = []

        def on_begin(self, path: Path, config: object) -> None:
            self.seen.append(path)

        def on_round(self, record: RoundRecord) -> None:
            self.seen.append(record.round)

        def on_end(self, summary: object) -> None:
            self.seen.append("end")

    both = [Names(), Names()]
    run(tiny_config(runs), serial, Callbacks(both))
    assert both[0].seen == both[1].seen == [runs, 1, 2, "end"]


def test_groups_are_said_when_they_change(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(Console(width=200))
    printer.on_start("ca-pfl", 3, 0, 2)
    for n, groups in enumerate(({"a": "everybody", "b": "everybody"}, {"a": "x", "b": "x"}, {"a": "x", "b": "x"})):
        printer.on_round(RoundRecord(n + 1, ("a", "b"), {}, {}, (), (), 0.0, groups=groups))
    said = [line for line in capsys.readouterr().out.splitlines() if "groups" in line]
    assert said == ["ca-pfl round 2: groups x (a, b)"]


def test_the_evaluation_of_every_client_moves_a_bar() -> None:
    with progress_of(Console(force_terminal=True, width=80)) as printer:
        assert isinstance(printer, Printer)
        printer.on_start("fedit", 2, 2, 3)
        assert printer._bar.tasks[0].description == "fedit round 2/2"
        printer.on_start("fedit", 3, 0, 3)
        printer.on_round(RoundRecord(1, ("a",), {"a": 2.0}, {}, (), (), 0.0))
        assert printer._bar.tasks[0].description == "fedit round 2/3"
        printer.on_evaluation(3)
        printer.on_evaluated("north")
        (bar,) = printer._bar.tasks
        assert (bar.description, bar.total, bar.completed, bar.visible) == ("evaluation", 3, 1, True)
        assert bar.fields["now"] == "north"
