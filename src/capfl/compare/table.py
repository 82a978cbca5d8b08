"""The table of a comparison: a row for each split and variant; as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from capfl.compare.results import Result, Results
from capfl.compare.spec import Plan
from capfl.compare.statistics import Interval, accuracy_within, bootstrap, bytes_to, clearly_worse
from capfl.report.tables import percent, size

MODELS = ("base", "global", "personal", "local_only")
SLACK = 0.01  # of the baseline's last validation accuracy, in the default target


@dataclass(frozen=True)
class Row:
    """One variant on one split. Lists have one value a seed; accuracies and shares are between 0 and 1."""

    split: str
    label: str
    seeds: tuple[int, ...]
    chance: tuple[float, ...]  # mean over clients; empty where answers have no options
    base: tuple[float, ...]
    global_: tuple[float, ...]  # mean over clients; empty where there is no such model
    personal: tuple[float, ...]
    local_only: tuple[float, ...]
    worst: tuple[float, ...]  # client, of the model that is compared
    difference: Interval | None  # of that model from the baseline's, paired by seed and client
    worse_off: float | None  # share of clients clearly worse off than with local-only
    most_lost: float | None  # accuracy: what the client that is furthest below local-only is below it; 0 if none is
    bytes_up: tuple[float, ...]  # for each client and round
    bytes_down: tuple[float, ...]
    bytes_total: tuple[float, ...]  # for each client, the whole run, both directions
    target: tuple[float, ...]  # validation accuracy, for each seed with a curve
    bytes_to_target: tuple[float | None, ...]
    within: Mapping[float, tuple[float, ...]]  # budget -> validation accuracy for each seed that it lasted for
    rank: tuple[float, ...]
    seconds: tuple[float, ...]
    memory: tuple[float, ...]  # bytes, the most that the process had
    clients: tuple[Mapping[str, Mapping[str, float]], ...]  # of each seed: id -> model -> accuracy; not in tables

    def to_json(self) -> dict[str, Any]:
        row = {key.rstrip("_"): value for key, value in asdict(self).items()}
        if self.difference:
            row["difference"]["crosses_zero"] = self.difference.crosses_zero
        return row | {"within": [{"budget": b, "accuracies": values} for b, values in self.within.items()]}


def make_rows(results: Results, plan: Plan) -> list[Row]:
    """Every variant that has a finished run."""
    rows = []
    for split, labels in results.items():
        budgets = plan.spec.budgets or _budgets([run for seeds in labels.values() for run in seeds.values()])
        baseline = labels.get(plan.baseline, {})
        alone = local_runs(labels)
        for label, seeds in labels.items():
            rows.append(_row(split, label, seeds, baseline, alone, budgets, plan))
    return rows


def _row(
    split: str,
    label: str,
    seeds: Mapping[int, Result],
    baseline: Mapping[int, Result],
    alone: Mapping[int, Result],
    budgets: Sequence[float],
    plan: Plan,
) -> Row:
    runs = list(seeds.values())
    score = plan.spec.score
    scores = [run.accuracies(score) for run in runs]
    curves = {seed: run.curve for seed, run in seeds.items() if run.curve}
    pairs = [] if seeds is alone else against_alone(seeds, alone, score)
    targets = {seed: target for seed in curves if (target := _target(plan, baseline.get(seed))) is not None}
    within = {budget: [accuracy_within(curve, budget) for curve in curves.values()] for budget in budgets}
    return Row(
        split=split,
        label=label,
        seeds=tuple(seeds),
        chance=_means(runs, "chance"),
        base=_means(runs, "base"),
        global_=_means(runs, "global"),
        personal=_means(runs, "personal"),
        local_only=_means(runs, "local_only"),
        worst=tuple(min(found.values()) for found in scores if found),
        difference=None if label == plan.baseline else difference(seeds, baseline, score),
        worse_off=statistics.fmean(clearly_worse(*pair) for pair in pairs) if pairs else None,
        most_lost=max(0.0, *(own - mine for mine, own, _ in pairs)) if pairs else None,
        bytes_up=tuple(run.bytes_per_round("up") for run in runs),
        bytes_down=tuple(run.bytes_per_round("down") for run in runs),
        bytes_total=tuple(run.bytes_per_client for run in runs),
        target=tuple(targets.values()),
        bytes_to_target=tuple(bytes_to(curves[seed], target) for seed, target in targets.items()),
        within={b: kept for b, found in within.items() if (kept := tuple(a for a in found if a is not None))},
        rank=tuple(statistics.fmean(row["rank"] for row in run.clients) for run in runs),
        seconds=tuple(run.summary["seconds"] for run in runs),
        memory=tuple(run.summary["peak_memory"] for run in runs),
        clients=tuple(_by_client(run) for run in runs),
    )


def local_runs(labels: Mapping[str, Mapping[int, Result]]) -> Mapping[int, Result]:
    """The runs of method `local` on a split, by seed; empty if there are none."""
    own = (seeds for seeds in labels.values() if next(iter(seeds.values())).summary["method"] == "local")
    return next(own, {})


def difference(mine: Mapping[int, Result], theirs: Mapping[int, Result], score: str) -> Interval | None:
    """Paired by seed and client, with its two-level bootstrap interval; None if nothing can be paired."""
    apart = []
    for seed in mine.keys() & theirs.keys():
        a, b = mine[seed].accuracies(score), theirs[seed].accuracies(score)
        if a and b:
            apart.append(np.array([a[client] - b[client] for client in sorted(a)], dtype=np.float64))
    return bootstrap(apart) if apart and sum(len(values) for values in apart) > 1 else None


def against_alone(
    mine: Mapping[int, Result], alone: Mapping[int, Result], score: str
) -> list[tuple[float, float, int]]:
    """Every client of every seed: its accuracy, that of the same run's local-only reference, and test items.

    Where the run has no reference, that of method `local` on the same split and seed. Empty if there is neither.
    """
    found = []
    for seed, run in mine.items():
        own = run.accuracies(score)
        other = run.accuracies("local_only") or (alone[seed].accuracies("personal") if seed in alone else None)
        if own and other:
            found += [(own[row["id"]], other[row["id"]], row["n_test"]) for row in run.clients]
    return found


def _means(runs: Sequence[Result], model: str) -> tuple[float, ...]:
    return tuple(statistics.fmean(found.values()) for run in runs if (found := run.accuracies(model)))


def _by_client(run: Result) -> dict[str, dict[str, float]]:
    return {row["id"]: {model: row[model] for model in MODELS if row[model] is not None} for row in run.clients}


def _target(plan: Plan, baseline: Result | None) -> float | None:
    if plan.spec.target is not None:
        return plan.spec.target
    return baseline.curve[-1].accuracy - SLACK if baseline and baseline.curve else None


def _budgets(runs: Sequence[Result]) -> list[float]:
    """Three by default: what the cheapest variant with a curve spends, what the dearest spends, and between them."""
    spent = [run.curve[-1].bytes for run in runs if run.curve]
    if not spent:
        return []
    low, high = min(spent), max(spent)
    return sorted({float(f"{value:.2g}") for value in (low, (low * high) ** 0.5, high)})


# -- the forms -----------------------------------------------------------------------------------------


def columns(rows: Sequence[Row], baseline: str) -> list[tuple[str, list[str]]]:
    """(heading, a cell for each row), without columns that are empty throughout."""
    budgets = sorted({budget for row in rows for budget in row.within})
    every = [
        ("variant", [row.label for row in rows]),
        ("seeds", [", ".join(map(str, row.seeds)) for row in rows]),
        ("global, %", [spread(row.global_) for row in rows]),
        ("personal, %", [spread(row.personal) for row in rows]),
        ("local-only, %", [spread(row.local_only) for row in rows]),
        ("worst client, %", [spread(row.worst) for row in rows]),
        (f"against {baseline}", [interval(row.difference) for row in rows]),
        ("clearly worse off", ["" if r.worse_off is None else f"{100 * r.worse_off:.0f} %" for r in rows]),
        ("most lost", ["" if row.most_lost is None else percent(row.most_lost) for row in rows]),
        ("up", [_mean_size(row.bytes_up) for row in rows]),
        ("down", [_mean_size(row.bytes_down) for row in rows]),
        ("in all", [_mean_size(row.bytes_total) for row in rows]),
        ("to target", [_to_target(row) for row in rows]),
        *[(f"at {size(b)}, %", [spread(row.within.get(b, ())) for row in rows]) for b in budgets],
        ("rank", [f"{statistics.fmean(row.rank):.3g}" for row in rows]),
        ("time", [f"{statistics.fmean(row.seconds):.0f} s" for row in rows]),
        ("memory", [_mean_size(row.memory) for row in rows]),
    ]
    return [(heading, cells) for heading, cells in every if any(cells)]


def caption(rows: Sequence[Row], plan: Plan) -> str:
    """What the columns mean."""
    n_seeds = max((len(row.seeds) for row in rows), default=0)
    parts = [
        "Accuracy on the clients' own test items: mean over clients, then mean ± sd over seeds"
        if n_seeds > 1
        else "Accuracy on the clients' own test items: mean over clients, one seed",
        f"against {plan.baseline}: {plan.spec.score} model, points, paired by seed and client, 95 % interval by a "
        "two-level bootstrap (seeds, then clients); where it crosses 0, the runs do not tell which is better",
        "clearly worse off: share of clients more than 1.96 standard errors below local-only",
        "most lost: points by which the client that is furthest below local-only is below it, over all seeds",
        "up and down: bytes for each client and round; in all: the whole run; final evaluation included",
        "memory: the most that the process of the run had, all clients in it",
    ]
    if any(row.bytes_to_target for row in rows):
        what = f"{percent(plan.spec.target)} %" if plan.spec.target else f"where {plan.baseline} ends, less one point"
        parts.append(f"to target: bytes for each client until the global model's validation accuracy is {what}")
    if any(row.within for row in rows):
        parts.append("at N bytes: validation accuracy of the global model when a client has spent so much")
    return "; ".join(parts) + "."


def markdown(rows: Sequence[Row], plan: Plan) -> str:
    """A table for each split."""
    texts = []
    for split in dict.fromkeys(row.split for row in rows):
        own = [row for row in rows if row.split == split]
        about = plan.spec.splits[split].about
        cols = columns(own, plan.baseline)
        most = max(own, key=lambda row: len(row.seeds))
        known = {"chance": spread(most.chance), "base model": spread(most.base)}
        levels = "; ".join(f"{name} {level} %" for name, level in known.items() if level)
        said = "; ".join(filter(None, (about, levels)))
        lines = ["| " + " | ".join(heading for heading, _ in cols) + " |", "|" + "---|" * len(cols)]
        lines += ["| " + " | ".join(cells[i] for _, cells in cols) + " |" for i in range(len(own))]
        texts.append("\n".join([f"**{split}**" + (f": {said}" if said else ""), "", *lines]))
    return "\n\n".join([*texts, caption(rows, plan)]) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each row, numbers as they are: means and sd over seeds, accuracies between 0 and 1, bytes, seconds."""
    budgets = sorted({budget for row in rows for budget in row.within})
    lines = []
    for row in rows:
        line: dict[str, object] = {
            "split": row.split, "variant": row.label, "seeds": " ".join(map(str, row.seeds)),
        }  # fmt: skip
        measured = (
            "chance",
            "base",
            "global_",
            "personal",
            "local_only",
            "worst",
            "bytes_up",
            "bytes_down",
            "bytes_total",
            "rank",
        )
        for name in (*measured, "seconds", "memory"):
            values = getattr(row, name)
            line[name.rstrip("_")] = statistics.fmean(values) if values else ""
            line[f"{name.rstrip('_')}_sd"] = statistics.stdev(values) if len(values) > 1 else ""
        apart = row.difference
        line |= {"difference": apart.mean, "low": apart.low, "high": apart.high} if apart else dict.fromkeys(
            ("difference", "low", "high"), "")  # fmt: skip
        line["crosses_zero"] = str(apart.crosses_zero).lower() if apart else ""
        line["worse_off"] = "" if row.worse_off is None else row.worse_off
        line["most_lost"] = "" if row.most_lost is None else row.most_lost
        reached = [spent for spent in row.bytes_to_target if spent is not None]
        line["bytes_to_target"] = statistics.fmean(reached) if reached else ""
        line["seeds_at_target"] = len(reached) if row.bytes_to_target else ""
        for budget in budgets:
            found = row.within.get(budget, ())
            line[f"accuracy_at_{budget:.0f}"] = statistics.fmean(found) if found else ""
        lines.append(line)
    text = io.StringIO()
    if lines:
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


def _to_target(row: Row) -> str:
    reached = [spent for spent in row.bytes_to_target if spent is not None]
    if not row.bytes_to_target:
        return ""
    if not reached:
        return "not reached"
    n = len(row.bytes_to_target)
    return _mean_size(reached) + (f" ({len(reached)} of {n} seeds)" if len(reached) < n else "")
