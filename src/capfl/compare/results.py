"""The finished runs of a comparison, read from their folders and checked against the spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from capfl.checkpoint import RunFolder
from capfl.compare.spec import Cell, Plan
from capfl.config import Config, load_config
from capfl.config.keys import flat
from capfl.errors import CheckpointError, ConfigError
from capfl.report.ledger import read_summary
from capfl.report.summary import Summary
from capfl.types import RoundRecord


class Point(NamedTuple):
    """One validation on the way: what was spent when it was reached."""

    round: int
    bytes: float  # for each client, both directions, from the start
    accuracy: float  # of the shared adapters, over all clients' validation items


@dataclass(frozen=True)
class Result:
    """One finished run, or of it the clients with one metric."""

    label: str
    seed: int
    folder: Path
    config: Config
    summary: Summary
    records: tuple[RoundRecord, ...]
    n_clients: int  # of the whole run

    def of_metric(self, metric: str) -> Result:
        return replace(self, summary=replace(self.summary, rows=tuple(self.summary.of_metric(metric))))

    def scores(self, model: str) -> dict[str, float] | None:
        """By client, or None if one of them was not scored with this model."""
        found = {row.id: getattr(row, model) for row in self.summary.rows}
        return None if None in found.values() else found

    @property
    def curve(self) -> tuple[Point, ...]:
        """Validations of the shared adapters, if there were any."""
        points, spent = [], 0
        for record in self.records:
            spent += record.bytes_up + record.bytes_down
            if record.validation_accuracy is not None:
                points.append(Point(record.round, spent / self.n_clients, record.validation_accuracy))
        return tuple(points)

    def bytes_per_round(self, direction: str) -> float:
        """For each client and round; the final evaluation is shared out between the rounds."""
        return self.summary.total_bytes(direction) / self.n_clients / self.summary.rounds

    @property
    def bytes_per_client(self) -> float:
        """Of the whole run, both directions."""
        return sum(self.summary.total_bytes(direction) for direction in ("up", "down")) / self.n_clients


Variants = Mapping[str, Mapping[int, Result]]
"""Label -> seed -> result."""

Results = dict[str, dict[str, dict[int, Result]]]
"""Split -> label -> seed -> result, in the order of the spec, finished ones alone."""


def by_metric(results: Results) -> Iterator[tuple[str, str, Variants]]:
    """(split, metric, runs): clients with different metrics are never compared with each other."""
    for split, labels in results.items():
        metrics = sorted({m for seeds in labels.values() for run in seeds.values() for m in run.summary.metrics})
        for metric in metrics:
            own = {
                label: {seed: run.of_metric(metric) for seed, run in seeds.items() if metric in run.summary.metrics}
                for label, seeds in labels.items()
            }
            yield split, metric, {label: seeds for label, seeds in own.items() if seeds}


def read_results(plan: Plan, out: Path) -> Results:
    """Every finished run of a plan.

    Raises:
        CheckpointError: a folder is of another config than the spec says, or two runs of one split and seed had
            other data: they cannot be compared.
    """
    found: Results = {split: {label: {} for label in plan.labels} for split in plan.splits}
    data: dict[tuple[str, int], tuple[str, Path]] = {}
    for cell in plan.cells:
        folder = RunFolder(out / cell.name)
        config = _checked(folder.path, cell, plan)
        if config is None or not (folder.path / "summary.json").is_file():
            continue
        digest = folder.read_json("run.json")["data"]
        other, where = data.setdefault((cell.split, cell.seed), (digest, folder.path))
        if other != digest:
            raise CheckpointError(
                f"{folder.path} and {where} had other data or another partition; only what stands under [splits.*] "
                "may change them. Move one away and run it again"
            )
        summary, records = read_summary(folder.path), tuple(folder.rounds())
        found[cell.split][cell.label][cell.seed] = Result(
            cell.label, cell.seed, folder.path, config, summary, records, len(summary.rows)
        )
    return {
        split: {label: dict(sorted(seeds.items())) for label, seeds in labels.items() if seeds}
        for split, labels in found.items()
    }


def unfinished(plan: Plan, out: Path) -> list[Cell]:
    return [cell for cell in plan.cells if not (out / cell.name / "summary.json").is_file()]


def _checked(folder: Path, cell: Cell, plan: Plan) -> Config | None:
    """The config of a run, if it is what the spec says, or None before it has begun.

    Where it ran and where its data lay may differ.
    """
    if not (folder / "config.toml").is_file():
        return None
    try:
        ran = load_config(folder / "config.toml")
    except ConfigError as error:
        raise CheckpointError(f"{folder} is of another version of capfl: {error}; move it away") from error
    ours, theirs = (_comparable(config) for config in (plan.configs[cell.name], ran))
    wrong = [
        f"{key} = {theirs[key]!r}, the spec {ours[key]!r}" for key in ours if key != "seed" and ours[key] != theirs[key]
    ]
    if ran.seed != cell.seed:
        wrong.append(f"seed = {ran.seed}, its name {cell.seed}")
    if wrong:
        raise CheckpointError(
            f"{folder} was run with {'; '.join(wrong)}. Put the spec right, or move the folder away and run it again"
        )
    return ran


def _comparable(config: Config) -> dict[str, object]:
    return dict(flat(config.model_dump(exclude={"out": True, "runtime": True, "data": {"dir"}})))
