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
from capfl.report.ledger import Ledger, read_ledger, read_summary
from capfl.report.summary import MODELS, Summary
from capfl.report.tables import Table, client_table, group_lines, notes, percent, scored_words, size
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
    up, down = (ledger.parts(direction) for direction in ("up", "down"))
    note = f"{ledger.rounds} rounds and the final evaluation, all clients, headers included."
    return {
        "title": f"{summary.method} on {', '.join(Path(name).stem for name in config.data.sets)}",
        "subtitle": f"{config.model.path}, {config.partition.kind}, seed {config.seed}",
        "words": words(summary),
        "table": client_table(summary, len(summary.rows)),
        "caption": f"Share of {scored_words(summary)}, %.",
        "groups": group_lines(summary),
        "notes": notes(summary),
        "figures": [figure for figure in figures if figure],
        "ledger": parts.ledger_figure([("up", up), ("down", down)], "Bytes by part", note),
        "ledger_table": parts.ledger_table(up, down),
        "messages": _messages(ledger),
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
    figures = []
    chance = summary.level("chance", summary.metrics[0]) if len(summary.metrics) == 1 else None
    levels = {} if chance is None else {"chance": 100 * chance}
    spent, n = 0, len(summary.rows)
    validated: list[tuple[int, float, float]] = []
    for record in records:
        spent += record.bytes_up + record.bytes_down
        if record.validation_accuracy is not None:
            validated.append((record.round, spent / n, 100 * record.validation_accuracy))
    note = "Validation items of all clients, shared adapters."
    if validated:
        line = charts.Series("shared", [(b, a) for _, b, a in validated], css="m-shared")
        image = charts.curves([line], "bytes for each client, both directions", "Accuracy against bytes", levels)
        figures.append(Figure("Accuracy against bytes, %", image, note=note))
        line = charts.Series("shared", [(r, a) for r, _, a in validated], css="m-shared")
        image = charts.curves([line], "round", "Accuracy over rounds", levels)
        figures.append(Figure("Accuracy over rounds, %", image, note=note))
    trained = [record for record in records if record.losses]
    if trained:
        line = charts.Series(
            "mean over clients",
            [(record.round, record.loss) for record in trained],
            [(min(record.losses.values()), max(record.losses.values())) for record in trained],
        )
        note = "Mean over the clients of a round; the band goes from the lowest to the highest."
        image = charts.curves([line], "round", "Training loss over rounds")
        figures.append(Figure("Training loss, nats a token", image, note=note))
    both = [
        charts.Series("up", [(r.round, r.bytes_up) for r in records]),
        charts.Series("down", [(r.round, r.bytes_down) for r in records], css="s1"),
    ]
    image = charts.curves(both, "round", "Bytes of each round")
    figures.append(Figure("Bytes of each round, all clients", image, (("s0", "up"), ("s1", "down"))))
    ranked = [record for record in records if record.ranks]
    if ranked:
        means = [[fmean(ranks) for ranks in record.ranks.values()] for record in ranked]
        line = charts.Series(
            "mean over clients",
            [(record.round, fmean(own)) for record, own in zip(ranked, means, strict=True)],
            [(min(own), max(own)) for own in means],
        )
        image = charts.curves([line], "round", "Mean rank over rounds")
        note = "Mean over modules and clients; the band goes from the client with the lowest mean to the highest."
        figures.append(Figure("Ranks over rounds", image, note=note))
    return figures


def _messages(ledger: Ledger) -> Table:
    rows = []
    for client in [*ledger.clients, None]:
        cells = []
        for direction in ("up", "down"):
            own = ledger.messages(direction, client)
            cells += [str(len(own)), size(sum(e.bytes for e in own)), size(ledger.per_round(direction, client))]
        rows.append([client or "all", *cells])
    heads = ["client", "messages up", "bytes", "a round", "messages down", "bytes", "a round"]
    return Table(heads, rows[:-1], rows[-1:])
