"""The page of one run, from its folder: summary.json, rounds.jsonl, config.toml and run.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from capfl.checkpoint import RunFolder
from capfl.compare.statistics import clearly_worse
from capfl.config import load_config
from capfl.page import charts, parts
from capfl.page.parts import Figure
from capfl.report.ledger import DIRECTIONS, ledger_table, read_ledger, read_summary
from capfl.report.summary import MODELS, Summary
from capfl.report.tables import client_table, group_lines, notes, percent, scored_words, size
from capfl.types import RoundRecord


def run_page(path: Path) -> dict[str, Any]:
    """What the template shows.

    Raises:
        CheckpointError: a file is missing or damaged, or the files do not agree.
    """
    folder = RunFolder(path)
    summary, ledger, records = read_summary(path), read_ledger(path), folder.rounds()
    config = load_config(path / "config.toml")
    figures = [
        parts.client_bars(summary.rows),
        *_curves(records, summary),
        parts.rank_map(summary.rows, config.lora.rank),
    ]
    return {
        "title": f"{summary.method} on {', '.join(Path(name).stem for name in config.data.sets)}",
        "subtitle": f"{config.model.path}, {config.partition.kind}, seed {config.seed}",
        "words": words(summary),
        "table": client_table(summary, len(summary.rows)),
        "caption": f"Share of {scored_words(summary)}, %.",
        "groups": group_lines(summary),
        "notes": notes(summary),
        "figures": [figure for figure in figures if figure],
        "ledger": [ledger_table(ledger, direction) for direction in DIRECTIONS],
        "command": parts.command(config),
        "config": (path / "config.toml").read_text(encoding="utf-8"),
        "machine": parts.machine(folder.read_json("run.json")),
    }


def words(summary: Summary) -> list[str]:
    """What came out, in sentences."""
    n = len(summary.rows)
    up, down = (size(summary.total_bytes(d) / n / summary.rounds) for d in ("up", "down"))
    return [
        f"{n} clients trained for {summary.rounds} rounds with {summary.method}. A client sent {up} and received "
        f"{down} a round. It took {parts.duration(summary.seconds)}.",
        *(_of_metric(summary, metric) for metric in summary.metrics),
    ]


def _of_metric(summary: Summary, metric: str) -> str:
    rows = summary.of_metric(metric)
    found = {
        model: f for model in ("personal", "shared", "local_only", "base") if (f := summary.statistics(model, metric))
    }
    each = ", ".join(f"{percent(f['mean'])} % with the {MODELS[model]} adapter" if model != "base" else
                     f"{percent(f['mean'])} % with the base model" for model, f in found.items())  # fmt: skip
    best = next(iter(found))
    worst = min(rows, key=lambda row: float(getattr(row, best)))
    text = (
        f"{metric.capitalize()} on the clients' own test items, in the mean over clients: {each}. The {MODELS[best]} "
        f"one is lowest at {worst.id}, with {percent(getattr(worst, best))} %. Which items the clients were tested on "
        f"makes a difference of ± {percent(found[best]['ci95'])} points (95 %); another seed may change more."
    )
    if "local_only" not in found or best == "local_only":
        return text
    pairs = [(getattr(row, best), row.local_only or 0.0, row.n_test) for row in rows]
    better, worse = sum(mine > own for mine, own, _ in pairs), sum(mine < own for mine, own, _ in pairs)
    apart = 100 * (found[best]["mean"] - found["local_only"]["mean"])
    return text + (
        f" Against training alone that is {apart:+.1f} points: {better} clients are better off, {worse} worse, "
        f"{sum(clearly_worse(*pair) for pair in pairs)} of them clearly (by more than 1.96 standard errors)."
    )


def _curves(records: Sequence[RoundRecord], summary: Summary) -> list[Figure]:
    """Validation against bytes, training loss and ranks, as far as there are any."""
    figures = []
    if len(summary.metrics) == 1 and (figure := _validation(records, summary)):
        figures.append(figure)
    losses = [(r.round, list(r.losses.values())) for r in records if r.losses]
    ranks = [(r.round, [fmean(own) for own in r.ranks.values()]) for r in records if r.ranks]
    for values, title in ((losses, "Training loss, nats a token"), (ranks, "Mean rank of a client's modules")):
        if values:
            points = [(round, fmean(own)) for round, own in values]
            line = charts.Series("mean over clients", points, [(min(own), max(own)) for _, own in values])
            image = charts.curves([line], "round", f"{title}, over rounds")
            figures.append(
                Figure(title, image, note="Mean over clients; the band goes from the lowest to the highest.")
            )
    return figures


def _validation(records: Sequence[RoundRecord], summary: Summary) -> Figure | None:
    chance = summary.level("chance", summary.metrics[0])
    points, spent = [], 0
    for record in records:
        spent += record.bytes_up + record.bytes_down
        if record.validation_accuracy is not None:
            points.append((spent / len(summary.rows), 100 * record.validation_accuracy))
    if not points:
        return None
    line = charts.Series("shared", points, css="m-shared")
    levels = {} if chance is None else {"chance": 100 * chance}
    image = charts.curves([line], "bytes for each client, both directions", "Accuracy against bytes", levels)
    return Figure("Accuracy against bytes, %", image, note="Validation items of all clients, shared adapters.")
