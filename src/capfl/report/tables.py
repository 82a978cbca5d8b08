"""Tables for people: a summary in the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from capfl.report.summary import MODELS, ClientRow, Summary

MOST_ROWS = 40  # clients in the table; summary.json has all


def summary_table(summary: Summary) -> Table:
    """One line a client, then mean with its interval, worst and spread. Accuracies in per cent."""
    shown = [model for model in MODELS if summary.accuracies(model) is not None]
    unequal = len({row.rank for row in summary.rows}) > 1

    def rank(row: ClientRow) -> list[str]:
        return [f"{row.rank:g}"] if unequal else []

    table = Table(
        title=_title(summary), title_justify="left", caption=_caption(summary), caption_justify="left",
        box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False,
    )  # fmt: skip
    table.add_column("client", no_wrap=True)
    for name in ("train", "test", *[model.removesuffix("_only") for model in shown], "up", "down"):
        table.add_column(name, justify="right", no_wrap=True)
    if unequal:
        table.add_column("rank", justify="right", no_wrap=True)
    for row in summary.rows[:MOST_ROWS]:
        cells = [row.id, str(row.n_train), str(row.n_test), *_cells(row, shown)]
        table.add_row(*cells, size(row.bytes_up), size(row.bytes_down), *rank(row))
    if len(summary.rows) > MOST_ROWS:
        table.add_row(f"and {len(summary.rows) - MOST_ROWS} more")
    table.add_section()
    statistics = {model: summary.statistics(model) for model in shown}
    for name, key in (("mean", "mean"), ("± 95 %", "ci95"), ("worst", "worst"), ("spread", "spread")):
        cells = [percent(found[key]) for found in statistics.values() if found]
        n_train, n_test = sum(r.n_train for r in summary.rows), sum(r.n_test for r in summary.rows)
        sizes = ["", ""] if key != "mean" else [size(summary.total_bytes("up")), size(summary.total_bytes("down"))]
        counts = ["", ""] if key != "mean" else [str(n_train), str(n_test)]
        table.add_row(name, *counts, *cells, *sizes, style="bold" if key == "mean" else "")
    return table


def _cells(row: ClientRow, shown: list[str]) -> list[str]:
    values = row.to_json()
    return [percent(values[model]) for model in shown]


def _title(summary: Summary) -> str:
    metric = "accuracy" if summary.metric == "accuracy" else "share of answer tokens predicted"
    return f"{summary.method}, {summary.rounds} rounds: {metric} on each client's own test items, %"


def _caption(summary: Summary) -> str:
    parts = []
    if summary.chance is not None and summary.majority is not None:
        parts.append(f"chance {percent(summary.chance)}, most frequent answer {percent(summary.majority)}")
    parts.append("± from the choice of test items, not of the seed")
    parts.append("bytes: whole run, up from and down to each client, headers and final delivery included")
    if summary.failures:
        parts.append(f"{summary.failures} failed replies, see rounds.jsonl")
    return "; ".join(parts)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def size(n_bytes: float) -> str:
    """Decimal units: 1 kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    raise AssertionError
