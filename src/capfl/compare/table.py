"""The table of a comparison: a row for each split, metric and variant."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from capfl import metrics
from capfl.compare.runs import Results
from capfl.compare.spec import Plan
from capfl.compare.statistics import Interval, bootstrap
from capfl.report.summary import MODELS, Pair, Summary, pair
from capfl.report.tables import Table, shown, size
from capfl.types import ClientId

SCORES = {"local_only": "local only", "shared": "shared", "personal": "personal", "worst": "worst client"}

Seeds = Mapping[int, Summary]
"""The finished runs of one variant on one split, by seed."""


@dataclass(frozen=True)
class Row:
    """One variant on one split, over its seeds. Scores and shares are between 0 and 1, but for perplexities."""

    split: str
    metric: str  # of the clients in this row
    label: str  # of the variant
    seeds: tuple[int, ...]
    values: Mapping[str, tuple[float, ...]]  # see ``_measured``: a value for each seed; empty where there is none
    difference: Interval | None  # of the adapter that is compared from the baseline's, paired by seed and client
    worse_off: float | None  # share of clients clearly worse off than with local-only; None of a perplexity, too
    most_lost: float | None  # by how much the client that loses most is worse off than with local-only; 0 if none is
    clients: tuple[Mapping[ClientId, Mapping[str, float]], ...]  # of each seed: id -> model -> score; not in tables

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        row |= row.pop("values")
        if self.difference:
            row["difference"]["crosses_zero"] = self.difference.crosses_zero
        return row


def make_rows(results: Results, plan: Plan) -> list[Row]:
    """Every variant that has a finished run. Clients with different metrics are never compared with each other."""
    rows = []
    for split in (name for name in plan.spec.splits if name in results):
        every = {name: results[split][name] for name in plan.spec.variants if name in results[split]}
        runs = [run for seeds in every.values() for run in seeds.values()]
        for metric in dict.fromkeys(metric for run in runs for metric in _compared(run, plan)):
            variants = {
                label: {seed: run for seed, run in seeds.items() if metric in run.metrics}
                for label, seeds in every.items()
            }
            rows += [_row(split, metric, label, variants, plan) for label, seeds in variants.items() if seeds]
    return rows


def _compared(run: Summary, plan: Plan) -> Sequence[str]:
    """The metrics that a comparison is about: those of the spec that the run has, or the first of each kind of task."""
    return [name for name in plan.spec.metrics if name in run.metrics] if plan.spec.metrics else run.leading


def _row(split: str, metric: str, label: str, variants: Mapping[str, Seeds], plan: Plan) -> Row:
    seeds, score = variants[label], plan.spec.score
    measured = [_measured(run, score, metric) for run in seeds.values()]
    alone = next((own for own in variants.values() if any(run.method == "local" for run in own.values())), {})
    pairs = [] if seeds is alone else against_alone(seeds, alone, score, metric)
    clearly = [found for one in pairs if (found := one.is_clearly_worse) is not None]
    baseline = {} if label == plan.baseline else variants.get(plan.baseline, {})
    return Row(
        split=split,
        metric=metric,
        label=label,
        seeds=tuple(seeds),
        values={key: tuple(value for own in measured if (value := own[key]) is not None) for key in measured[0]},
        difference=difference(seeds, baseline, score, metric),
        worse_off=statistics.fmean(map(bool, clearly)) if clearly else None,
        most_lost=max(0.0, *(-one.gain for one in pairs)) if pairs else None,
        clients=tuple(_by_client(run, metric) for run in seeds.values()),
    )


def _measured(run: Summary, score: str, metric: str) -> dict[str, float | None]:
    """What is told of one run: means over clients, and bytes of a client."""
    up, down = run.bytes_per_client("up"), run.bytes_per_client("down")
    compared = run.scores(score, metric)
    return {
        **{field: run.mean(field, metric) for field in ("chance", "base", "local_only", "shared", "personal", "rank")},
        "worst": metrics.metric(metric).worst(list(compared.values())) if compared else None,
        "bytes_up": up / run.rounds,  # the final evaluation is shared out between the rounds
        "bytes_down": down / run.rounds,
        "bytes_total": up + down,
        "seconds": run.seconds,
        "memory": float(run.peak_memory),  # the most that the process had
    }


def difference(mine: Seeds, theirs: Seeds, score: str, metric: str) -> Interval | None:
    """Paired by seed and client, with its two-level bootstrap interval; None if nothing can be paired."""
    apart = []
    for seed in mine.keys() & theirs.keys():
        a, b = mine[seed].scores(score, metric), theirs[seed].scores(score, metric)
        if a and b:
            apart.append(np.array([a[client] - b[client] for client in sorted(a)], dtype=np.float64))
    return bootstrap(apart) if apart and sum(map(len, apart)) > 1 else None


def against_alone(mine: Seeds, alone: Seeds, score: str, metric: str) -> list[Pair]:
    """Every client of every seed beside the same run's local-only reference.

    Where the run has no reference, that of method `local` on the same split and seed. Empty if there is neither.
    """
    found = []
    for seed, run in mine.items():
        rows = run.of_metric(metric)
        if run.scores("local_only", metric):
            others, model = {row.id: row for row in rows}, "local_only"
        else:
            others, model = {row.id: row for row in alone[seed].rows} if seed in alone else {}, "personal"
        pairs = [pair(row, score, metric, others[row.id], model) for row in rows if row.id in others]
        found += [one for one in pairs if one is not None]
    return found


def _by_client(run: Summary, metric: str) -> dict[ClientId, dict[str, float]]:
    return {
        row.id: {model: score for model in MODELS if (score := row.value(model, metric)) is not None}
        for row in run.of_metric(metric)
    }


# -- for people ------------------------------------------------------------------------------------------


def by_split(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each split and metric."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.split, row.metric), []).append(row)
    return found


def make_table(rows: Sequence[Row], baseline: str) -> Table:
    """The rows of one split and metric, without columns that are empty throughout."""
    metric = rows[0].metric
    head = ", %" if metrics.metric(metric).is_share else ""

    def cells(key: str, form: Callable[[float], str]) -> list[str]:
        return [form(statistics.fmean(row.values[key])) for row in rows]

    columns = {
        "variant": [row.label for row in rows],
        "seeds": [", ".join(map(str, row.seeds)) for row in rows],
        **{f"{words}{head}": [spread(row.values[key], metric) for row in rows] for key, words in SCORES.items()},
        f"against {baseline}": [interval(row.difference, metric) for row in rows],
        "clearly worse off": ["" if r.worse_off is None else f"{100 * r.worse_off:.0f} %" for r in rows],
        "most lost": [shown(row.most_lost, metric) for row in rows],
        "up": cells("bytes_up", size),
        "down": cells("bytes_down", size),
        "in all": cells("bytes_total", size),
        "rank": cells("rank", "{:.3g}".format),
        "time": cells("seconds", "{:.0f} s".format),
        "memory": cells("memory", size),
    }
    filled = {head: cells for head, cells in columns.items() if any(cells)}
    return Table(list(filled), list(zip(*filled.values(), strict=True)))


def tables(rows: Sequence[Row], plan: Plan) -> Iterator[tuple[str, str, Table]]:
    """For each split and metric the split's name, what is said of it, and its table."""
    for (split, metric), own in by_split(rows).items():
        most = max(own, key=lambda row: len(row.seeds))
        share = metrics.metric(metric).is_share
        known = {name: spread(most.values[key], metric) for key, name in (("chance", "chance"), ("base", "base model"))}
        levels = "; ".join(f"{name} {level}{' %' if share else ''}" for name, level in known.items() if level)
        said = metric if share else f"{metric} (less is better)"
        about = "; ".join(filter(None, (plan.spec.splits[split].about, said, levels)))
        yield split, about, make_table(own, plan.baseline)


def markdown(rows: Sequence[Row], plan: Plan) -> str:
    """All tables, and what their columns mean."""
    texts = [f"**{split}**: {about}\n\n{table.markdown()}" for split, about, table in tables(rows, plan)]
    return "\n\n".join([*texts, "; ".join(caption(rows, plan)) + "."]) + "\n"


def caption(rows: Sequence[Row], plan: Plan) -> list[str]:
    """What the columns mean."""
    several = max(len(row.seeds) for row in rows) > 1
    over = "mean over clients, then mean ± sd over seeds" if several else "mean over clients, one seed"
    return [
        f"Scores on the clients' own test items: {over}",
        "shared: the adapter of the client's group, or of all clients; personal: the client's own",
        f"against {plan.baseline}: {plan.spec.score} adapter, points or perplexity, paired by seed and client, 95 % "
        "interval by a two-level bootstrap (seeds, then clients); where it crosses 0, the runs do not tell which is "
        "better",
        "clearly worse off: share of clients more than 1.96 standard errors worse off than with local only",
        "most lost: by how much the client that loses most is worse off than with local only, over all seeds",
        "up and down: bytes for each client and round; in all: the whole run; final evaluation included",
        "memory: the most that the process of the run had, all clients in it",
    ]


def spread(values: Sequence[float], metric: str) -> str:
    """Mean ± standard deviation over seeds, as ``shown``."""
    if not values:
        return ""
    deviation = f" ± {shown(statistics.stdev(values), metric)}" if len(values) > 1 else ""
    return shown(statistics.fmean(values), metric) + deviation


def interval(found: Interval | None, metric: str) -> str:
    """An interval as text: in points or as a perplexity, marked where it crosses zero."""
    if found is None:
        return ""
    is_share = metrics.metric(metric).is_share
    numbers = (found.mean, found.low, found.high)
    mean, low, high = (f"{100 * value:+.1f}" if is_share else f"{value:+.3g}" for value in numbers)
    return f"{mean} ({low} to {high})" + (", crosses 0" if found.crosses_zero else "")
