"""The table of a comparison: a row for each split, metric and variant; as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from capfl.compare.results import Result, Results, Variants, by_metric
from capfl.compare.spec import Plan
from capfl.compare.statistics import Interval, bootstrap, clearly_worse
from capfl.report.summary import MODELS
from capfl.report.tables import percent, size

MEASURED = (
    "chance", "base", "local_only", "shared", "personal", "worst", "bytes_up", "bytes_down", "bytes_total", "rank",
    "seconds", "memory",
)  # fmt: skip
"""Fields of a row with a number for each seed."""


@dataclass(frozen=True)
class Row:
    """One variant on one split. Tuples have one value a seed; scores and shares are between 0 and 1."""

    split: str
    metric: str  # of the clients in this row
    label: str
    seeds: tuple[int, ...]
    chance: tuple[float, ...]  # mean over clients; empty where answers have no options
    base: tuple[float, ...]
    local_only: tuple[float, ...]
    shared: tuple[float, ...]  # mean over clients; empty where there is no such model
    personal: tuple[float, ...]
    worst: tuple[float, ...]  # client, of the model that is compared
    difference: Interval | None  # of that model from the baseline's, paired by seed and client
    worse_off: float | None  # share of clients clearly worse off than with local-only
    most_lost: float | None  # what the client that is furthest below local-only is below it; 0 if none is
    bytes_up: tuple[float, ...]  # for each client and round
    bytes_down: tuple[float, ...]
    bytes_total: tuple[float, ...]  # for each client, the whole run, both directions
    rank: tuple[float, ...]
    seconds: tuple[float, ...]
    memory: tuple[float, ...]  # bytes, the most that the process had
    clients: tuple[Mapping[str, Mapping[str, float]], ...]  # of each seed: id -> model -> score; not in tables

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        if self.difference:
            row["difference"]["crosses_zero"] = self.difference.crosses_zero
        return row


def make_rows(results: Results, plan: Plan) -> list[Row]:
    """Every variant that has a finished run."""
    return [
        _row(split, metric, label, runs, plan)
        for split, metric, runs in by_metric(results) for label in runs
    ]  # fmt: skip


def _row(split: str, metric: str, label: str, variants: Variants, plan: Plan) -> Row:
    seeds, score = variants[label], plan.spec.score
    runs = list(seeds.values())
    alone = local_runs(variants)
    pairs = [] if seeds is alone else against_alone(seeds, alone, score)
    return Row(
        split=split,
        metric=metric,
        label=label,
        seeds=tuple(seeds),
        chance=_means(runs, "chance"),
        base=_means(runs, "base"),
        local_only=_means(runs, "local_only"),
        shared=_means(runs, "shared"),
        personal=_means(runs, "personal"),
        worst=tuple(min(found.values()) for run in runs if (found := run.scores(score))),
        difference=None if label == plan.baseline else difference(seeds, variants.get(plan.baseline, {}), score),
        worse_off=statistics.fmean(clearly_worse(*pair) for pair in pairs) if pairs else None,
        most_lost=max(0.0, *(own - mine for mine, own, _ in pairs)) if pairs else None,
        bytes_up=tuple(run.bytes_per_round("up") for run in runs),
        bytes_down=tuple(run.bytes_per_round("down") for run in runs),
        bytes_total=tuple(run.bytes_per_client for run in runs),
        rank=tuple(statistics.fmean(row.rank for row in run.summary.rows) for run in runs),
        seconds=tuple(run.summary.seconds for run in runs),
        memory=tuple(float(run.summary.peak_memory) for run in runs),
        clients=tuple(_by_client(run) for run in runs),
    )


def local_runs(variants: Variants) -> Mapping[int, Result]:
    """The runs of method `local` on a split, by seed; empty if there are none."""
    own = (seeds for seeds in variants.values() if next(iter(seeds.values())).summary.method == "local")
    return next(own, {})


def difference(mine: Mapping[int, Result], theirs: Mapping[int, Result], score: str) -> Interval | None:
    """Paired by seed and client, with its two-level bootstrap interval; None if nothing can be paired."""
    apart = []
    for seed in mine.keys() & theirs.keys():
        a, b = mine[seed].scores(score), theirs[seed].scores(score)
        if a and b:
            apart.append(np.array([a[client] - b[client] for client in sorted(a)], dtype=np.float64))
    return bootstrap(apart) if apart and sum(len(values) for values in apart) > 1 else None


def against_alone(
    mine: Mapping[int, Result], alone: Mapping[int, Result], score: str
) -> list[tuple[float, float, int]]:
    """Every client of every seed: its score, that of the same run's local-only reference, and test items.

    Where the run has no reference, that of method `local` on the same split and seed. Empty if there is neither.
    """
    found = []
    for seed, run in mine.items():
        own = run.scores(score)
        other = run.scores("local_only") or (alone[seed].scores("personal") if seed in alone else None)
        if own and other:
            found += [(own[row.id], other[row.id], row.n_test) for row in run.summary.rows]
    return found


def _means(runs: Sequence[Result], model: str) -> tuple[float, ...]:
    return tuple(statistics.fmean(found.values()) for run in runs if (found := run.scores(model)))


def _by_client(run: Result) -> dict[str, dict[str, float]]:
    return {
        row.id: {model: score for model in MODELS if (score := getattr(row, model)) is not None}
        for row in run.summary.rows
    }


# -- the forms -----------------------------------------------------------------------------------------


def columns(rows: Sequence[Row], baseline: str) -> list[tuple[str, list[str]]]:
    """(heading, a cell for each row), without columns that are empty throughout."""
    every = [
        ("variant", [row.label for row in rows]),
        ("seeds", [", ".join(map(str, row.seeds)) for row in rows]),
        ("local only, %", [spread(row.local_only) for row in rows]),
        ("shared, %", [spread(row.shared) for row in rows]),
        ("personal, %", [spread(row.personal) for row in rows]),
        ("worst client, %", [spread(row.worst) for row in rows]),
        (f"against {baseline}", [interval(row.difference) for row in rows]),
        ("clearly worse off", ["" if r.worse_off is None else f"{100 * r.worse_off:.0f} %" for r in rows]),
        ("most lost", ["" if row.most_lost is None else percent(row.most_lost) for row in rows]),
        ("up", [_mean_size(row.bytes_up) for row in rows]),
        ("down", [_mean_size(row.bytes_down) for row in rows]),
        ("in all", [_mean_size(row.bytes_total) for row in rows]),
        ("rank", [f"{statistics.fmean(row.rank):.3g}" for row in rows]),
        ("time", [f"{statistics.fmean(row.seconds):.0f} s" for row in rows]),
        ("memory", [_mean_size(row.memory) for row in rows]),
    ]
    return [(heading, cells) for heading, cells in every if any(cells)]


def caption(rows: Sequence[Row], plan: Plan) -> str:
    """What the columns mean."""
    over = "mean over clients, then mean ± sd over seeds" if max(len(row.seeds) for row in rows) > 1 else (
        "mean over clients, one seed")  # fmt: skip
    parts = [
        f"Scores on the clients' own test items: {over}",
        "shared: the adapter of the client's group, or of all clients; personal: the client's own",
        f"against {plan.baseline}: {plan.spec.score} adapter, points, paired by seed and client, 95 % interval by a "
        "two-level bootstrap (seeds, then clients); where it crosses 0, the runs do not tell which is better",
        "clearly worse off: share of clients more than 1.96 standard errors below local only",
        "most lost: points by which the client that is furthest below local only is below it, over all seeds",
        "up and down: bytes for each client and round; in all: the whole run; final evaluation included",
        "memory: the most that the process of the run had, all clients in it",
    ]
    return "; ".join(parts) + "."


def markdown(rows: Sequence[Row], plan: Plan) -> str:
    """A table for each split and metric."""
    texts = []
    for split, metric in dict.fromkeys((row.split, row.metric) for row in rows):
        own = [row for row in rows if (row.split, row.metric) == (split, metric)]
        cols = columns(own, plan.baseline)
        most = max(own, key=lambda row: len(row.seeds))
        known = {"chance": spread(most.chance), "base model": spread(most.base)}
        levels = "; ".join(f"{name} {level} %" for name, level in known.items() if level)
        about = "; ".join(filter(None, (plan.spec.splits[split].about, metric, levels)))
        lines = ["| " + " | ".join(heading for heading, _ in cols) + " |", "|" + "---|" * len(cols)]
        lines += ["| " + " | ".join(cells[i] for _, cells in cols) + " |" for i in range(len(own))]
        texts.append("\n".join([f"**{split}**: {about}", "", *lines]))
    return "\n\n".join([*texts, caption(rows, plan)]) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each row, numbers as they are: means and sd over seeds, scores between 0 and 1, bytes, seconds."""
    lines = []
    for row in rows:
        line: dict[str, object] = {"split": row.split, "metric": row.metric, "variant": row.label}
        line["seeds"] = " ".join(map(str, row.seeds))
        for name in MEASURED:
            values = getattr(row, name)
            line[name] = statistics.fmean(values) if values else ""
            line[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else ""
        apart = row.difference
        for name, key in (("difference", "mean"), ("low", "low"), ("high", "high"), ("crosses_zero", "crosses_zero")):
            line[name] = "" if apart is None else getattr(apart, key)
        for name in ("worse_off", "most_lost"):
            line[name] = "" if getattr(row, name) is None else getattr(row, name)
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, in per cent."""
    if not values:
        return ""
    return percent(statistics.fmean(values)) + (f" ± {percent(statistics.stdev(values))}" if len(values) > 1 else "")


def interval(found: Interval | None) -> str:
    """In points, marked where it crosses zero."""
    if found is None:
        return ""
    mean, low, high = (f"{100 * value:+.1f}" for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})" + (", crosses 0" if found.crosses_zero else "")


def _mean_size(values: Sequence[float]) -> str:
    return size(statistics.fmean(values)) if values else ""
