"""The page of a comparison: for each split the table, accuracy against bytes, differences, and every client."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from capfl.checkpoint import RunFolder
from capfl.compare.folder import read_plan
from capfl.compare.results import Result, Variants, by_metric, read_results, unfinished
from capfl.compare.spec import Plan
from capfl.compare.table import Row, caption, columns, local_runs, make_rows
from capfl.errors import CheckpointError
from capfl.page import charts, parts
from capfl.page.parts import Figure
from capfl.page.svg import colour
from capfl.report.summary import MODELS, PARTS, ClientRow
from capfl.report.tables import Table, percent, size


def comparison_page(path: Path) -> dict[str, Any]:
    """What the template shows: all runs that are finished by now.

    Raises:
        CheckpointError: nothing is finished, a file is damaged, or a run is not what the spec says.
    """
    plan, said = read_plan(path)
    results = read_results(plan, path)
    rows = make_rows(results, plan)
    if not rows:
        raise CheckpointError(f"{path} has no finished run; go on with: {' '.join(said['command'])}")
    missing = unfinished(plan, path)
    first = next(run for labels in results.values() for seeds in labels.values() for run in seeds.values())
    n_runs = len(plan.cells) - len(missing)
    return {
        "title": ", ".join(dict.fromkeys(row.label for row in rows)) if len(plan.labels) < 5 else
                 f"{len({row.label for row in rows})} variants compared",
        "subtitle": f"{len(results)} {'split' if len(results) == 1 else 'splits'}, "
                    f"seeds {', '.join(map(str, said['chosen']['seeds']))}, {n_runs} runs",
        "sections": [_section(split, metric, rows, runs, plan) for split, metric, runs in by_metric(results)],
        "caption": caption(rows, plan),
        "missing": [cell.name for cell in missing],
        "command": shlex.join(said["command"]),
        "spec": (path / "spec.toml").read_text(encoding="utf-8"),
        "base": (path / "base.toml").read_text(encoding="utf-8"),
        "machine": parts.machine(RunFolder(first.folder).read_json("run.json")),
        "first": first.folder.name,
    }  # fmt: skip


def _section(split: str, metric: str, every: Sequence[Row], results: Variants, plan: Plan) -> dict[str, Any]:
    rows = [row for row in every if (row.split, row.metric) == (split, metric)]
    n_metrics = len({row.metric for row in every if row.split == split})
    columns_ = columns(rows, plan.baseline)
    css = {label: colour(i) for i, label in enumerate(plan.labels)}
    figures = [_against_bytes(rows, results, plan, css), _differences(rows, plan), *_over_rounds(results, css)]
    return {
        "name": split if n_metrics == 1 else f"{split}, {metric}",
        "about": plan.spec.splits[split].about,
        "words": words(rows, plan),
        "table": Table([h for h, _ in columns_], [[cells[i] for _, cells in columns_] for i in range(len(rows))]),
        "figures": [figure for figure in figures if figure],
        "ledger": _ledger(results),
        "variants": [(label, _of_variant(seeds, local_runs(results))) for label, seeds in results.items()],
    }


def words(rows: Sequence[Row], plan: Plan) -> list[str]:
    """What came out, in sentences."""
    scored = [(row, scores) for row in rows if (scores := _scores(row, plan))]
    if not scored:
        return [f"No run has a {plan.spec.score} adapter."]
    best, scores = max(scored, key=lambda pair: fmean(pair[1]))
    texts = [
        f"The highest mean {best.metric} of the {plan.spec.score} adapter is {percent(fmean(scores))} %, by "
        f"{best.label}."
    ]
    found = [(row.label, row.difference) for row in rows if row.difference]
    better = [label for label, apart in found if not apart.crosses_zero and apart.mean > 0]
    worse = [label for label, apart in found if not apart.crosses_zero and apart.mean < 0]
    even = [label for label, apart in found if apart.crosses_zero]
    for names, what in (
        (better, f"above {plan.baseline} with an interval that leaves out zero"),
        (worse, f"below {plan.baseline} with an interval that leaves out zero"),
        (even, f"not told apart from {plan.baseline}: the interval crosses zero"),
    ):
        if names:
            texts.append(f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {what}.")
    return texts


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _scores(row: Row, plan: Plan) -> tuple[float, ...]:
    return row.personal if plan.spec.score == "personal" else row.shared


def _against_bytes(rows: Sequence[Row], results: Variants, plan: Plan, css: Mapping[str, str]) -> Figure | None:
    """Where every variant ends. Local-only, which sends headers alone, is a level."""
    marks, levels = [], {}
    for row in rows:
        scores = [100 * value for value in _scores(row, plan)]
        if not scores:
            continue
        mean, sd = fmean(scores), stdev(scores) if len(scores) > 1 else 0.0
        if next(iter(results[row.label].values())).summary.method == "local":
            levels[row.label] = mean
        else:
            marks.append(charts.Mark(row.label, fmean(row.bytes_total), mean, mean - sd, mean + sd, css[row.label]))
    if not marks:
        return None
    image = charts.scatter(marks, "bytes for each client, whole run, both directions", "Accuracy against bytes", levels)
    note = "Mean over seeds, whiskers of one standard deviation."
    names = tuple((mark.css, mark.name) for mark in marks)
    return Figure(f"Accuracy against bytes: {plan.spec.score} adapter, test, %", image, names, note)


def _differences(rows: Sequence[Row], plan: Plan) -> Figure | None:
    found = [(row.label, row.difference) for row in rows if row.difference]
    if not found:
        return None
    drawn = [(label, 100 * a.mean, 100 * a.low, 100 * a.high) for label, a in found]
    image = charts.forest(drawn, "points", f"Differences from {plan.baseline}")
    note = f"Points of the {plan.spec.score} adapter, 95 % interval by a two-level bootstrap. Hollow: it crosses zero."
    return Figure(f"Difference from {plan.baseline}", image, note=note)


def _over_rounds(results: Variants, css: Mapping[str, str]) -> list[Figure]:
    """Validation accuracy against bytes where there is one, and the training loss over rounds; means over seeds."""
    figures = []
    curves = {label: [run.curve for run in seeds.values()] for label, seeds in results.items()}
    curves = {label: own for label, own in curves.items() if all(own) and len({len(curve) for curve in own}) == 1}
    if curves:
        series = [
            charts.Series(label, [
                (fmean(point.bytes for point in at), 100 * fmean(point.accuracy for point in at))
                for at in zip(*own, strict=True)
            ], css=css[label])
            for label, own in curves.items()
        ]  # fmt: skip
        image = charts.curves(series, "bytes for each client, both directions", "Validation accuracy", log_x=True)
        names = tuple((css[label], label) for label in curves)
        figures.append(Figure("On the way: validation accuracy, %", image, names, "Shared adapters, all clients."))
    losses = {
        label: [
            (at[0].round, fmean(record.loss for record in at))
            for at in zip(*(run.records for run in seeds.values()), strict=False)
            if all(record.losses for record in at)
        ]
        for label, seeds in results.items()
    }
    series = [charts.Series(label, points, css=css[label]) for label, points in losses.items() if points]
    if series:
        image = charts.curves(series, "round", "Training loss over rounds")
        names = tuple((own.css, own.name) for own in series)
        figures.append(Figure("Training loss, nats a token", image, names, "Mean over clients and seeds."))
    return figures


def _ledger(results: Variants) -> Figure:
    rows = []
    for label, seeds in results.items():
        for direction in ("up", "down"):
            own = [run.summary.parts(direction) for run in seeds.values()]
            n = [run.n_clients for run in seeds.values()]
            mean = {p: fmean(found.get(p, 0) / k for found, k in zip(own, n, strict=True)) for p in PARTS}
            rows.append((f"{label} {direction}", mean))
    return parts.ledger_figure(rows, "Bytes by part", "For each client, the whole run, mean over seeds.")


def _of_variant(seeds: Mapping[int, Result], alone: Mapping[int, Result]) -> dict[str, Any]:
    """Bars, ranks and the command of one variant."""
    runs = list(seeds.values())
    clients = mean_clients(runs)
    if seeds.keys() <= alone.keys():  # the reference of the runs themselves, if they have one, goes before
        others = mean_clients([alone[seed] for seed in seeds])
        clients = [replace(row, local_only=other.personal) if row.local_only is None else row
                   for row, other in zip(clients, others, strict=True)]  # fmt: skip
    figures = [parts.client_bars(clients), parts.rank_map(runs[0].summary.rows, runs[0].config.lora.rank)]
    said = [f"{size(fmean(run.bytes_per_client for run in runs))} for each client"]
    found = {row.id: row.personal for row in clients if row.personal is not None}
    if len(found) == len(clients):
        lowest = min(found, key=found.__getitem__)
        said = [f"personal {percent(fmean(found.values()))} %", *said, f"lowest {lowest}, {percent(found[lowest])} %"]
    return {
        "about": ", ".join(said),
        "figures": [figure for figure in figures if figure],
        "seeds": f"Bars: mean over seeds {', '.join(str(run.seed) for run in runs)}. Ranks: seed {runs[0].seed}."
                 if len(runs) > 1 else f"Seed {runs[0].seed}.",
        "command": parts.command(runs[0].config),
    }  # fmt: skip


def mean_clients(runs: Sequence[Result]) -> list[ClientRow]:
    """Each client, its scores in the mean over the runs that have it; None where one of them has no such model."""
    by_id: dict[str, list[ClientRow]] = {}
    for run in runs:
        for row in run.summary.rows:
            by_id.setdefault(row.id, []).append(row)

    def mean(rows: Sequence[ClientRow], model: str) -> float | None:
        scores = [score for row in rows if (score := getattr(row, model)) is not None]
        return fmean(scores) if len(scores) == len(rows) else None

    scores: dict[str, dict[str, Any]] = {
        client: {model: mean(rows, model) for model in MODELS} for client, rows in by_id.items()
    }
    return [replace(rows[0], **scores[client]) for client, rows in by_id.items()]
