"""`--tracker`: what goes to each tracker, by stand-ins that record the calls; TensorBoard itself if it is here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from capfl.errors import ClientError
from capfl.report.tracker import TRACKERS
from commands import TINY_FLAGS, command, refused


class Recorder(ModuleType):
    """Stands for a package: every attribute is a function that notes its call and gives the recorder back."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*args: Any, **kwargs: Any) -> Recorder:
            self.calls.append((name, args, kwargs))
            return self

        return called

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def logged(name: str, package: Recorder) -> dict[tuple[str, int], float]:
    """(metric, step) -> value, from the calls of any of the four."""
    if name == "tensorboard":
        return {(args[0], args[2]): args[1] for args, _ in package.named("add_scalar")}
    if name == "mlflow":
        pairs = [(args[0], kwargs["step"]) for args, kwargs in package.named("log_metrics")]
    elif name == "trackio":
        pairs = [(args[0], kwargs["step"]) for args, kwargs in package.named("log")]
    else:
        pairs = [
            ({k: v for k, v in args[0].items() if k != "round"}, args[0]["round"]) for args, _ in package.named("log")
        ]
    return {(metric, step): value for values, step in pairs for metric, value in values.items()}


@pytest.mark.parametrize(("name", "end"), [("tensorboard", "close"), ("mlflow", "end_run"), ("wandb", "finish"),
                                           ("trackio", "finish")])  # fmt: skip
def test_rounds_and_summary_arrive(name: str, end: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Recorder(name)
    monkeypatch.setitem(sys.modules, TRACKERS[name][0], package)
    flags = [flag for flag in TINY_FLAGS if "references" not in flag]
    result = command("run", *flags, "--references", "local", "--out", runs, "--tracker", name)
    assert result.exit_code == 0, result.output
    found = logged(name, package)
    records = [json.loads(line) for line in (runs / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        step = record["round"]
        assert found["fedit/loss", step] == pytest.approx(sum(record["losses"].values()) / len(record["losses"]))
        assert found["fedit/bytes_up", step] == sum(e["bytes"] for e in record["ledger"] if e["direction"] == "up")
        assert found["fedit/validation_accuracy", step] == record["validation_accuracy"]
        assert ("local/loss", step) in found
    summary = json.loads((runs / "summary.json").read_text())
    for model in ("base", "global", "personal", "local_only"):
        assert found[f"test/{model}/mean", 2] == summary["models"][model]["mean"]
        assert found[f"test/{model}/worst", 2] == summary["models"][model]["worst"]
    assert found["bytes/down", 2] == summary["bytes"]["down"]
    assert "train.steps" in str(package.calls)  # the config
    assert package.calls[-1][0] == end
    assert len(package.named(end)) == 1


def test_it_is_closed_when_the_run_fails(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Recorder("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", package)

    def fail(*args: object) -> None:
        raise ClientError("train", 1, "bank", "no more")

    monkeypatch.setattr("capfl.experiment.run_round", fail)
    assert "no more" in refused("run", *TINY_FLAGS, "--out", runs, "--tracker", "mlflow")
    assert package.calls[-1][0] == "end_run"


def test_a_tracker_that_is_not_there_is_named_before_anything_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    assert "install it with: pip install trackio" in refused("run", *TINY_FLAGS, "--out", runs, "--tracker", "trackio")
    said = refused("run", *TINY_FLAGS, "--out", runs, "--tracker", "tensorbored")
    assert "choose from tensorboard, mlflow, wandb, trackio" in said
    assert not runs.exists()


def test_tensorboard_reads_what_was_written(runs: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard here")
    assert command("run", *TINY_FLAGS, "--out", runs, "--tracker", "tensorboard").exit_code == 0
    events = reader.EventAccumulator(str(runs / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("fedit/loss")]
    records = [json.loads(line) for line in (runs / "rounds.jsonl").read_text().splitlines()]
    expected = [sum(record["losses"].values()) / len(record["losses"]) for record in records]
    assert losses == pytest.approx(expected, rel=1e-6)
