"""Tables for people: a summary in the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from capfl.report.summary import MODELS, Summary

MOST_ROWS = 40  # clients in the table; summary.json has all


def summary_table(summary: Summary) -> Table:
    """One line a client, then mean with its interval, worst and spread. Accuracies in per cent.

    Chance and rank have columns of their own where they differ between clients.
    """
    models = [model for model in MODELS if summary.accuracies(model) is not None]
    by_client = {
        "chance": len({row.chance for row in summary.rows}) > 1,
        "rank": len({r.rank for r in summary.rows}) > 1,
    }
    table = Table(
        title=_title(summary), title_justify="left", caption=_caption(summary), caption_justify="left",
        box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False,
    )  # fmt: skip
    optional = [name for name, shown in by_client.items() if shown]
    names = ["train", "test", *optional, *[model.removesuffix("_only") for model in models], "up", "down"]
    table.add_column("client", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.rows[:MOST_ROWS]:
        extra = {"chance": percent(row.chance) if row.chance is not None else "", "rank": f"{row.rank:.3g}"}
        accuracies = [percent(row.to_json()[model]) for model in models]
        sizes = [size(row.bytes_up), size(row.bytes_down)]
        table.add_row(row.id, str(row.n_train), str(row.n_test), *[extra[n] for n in optional], *accuracies, *sizes)
    if len(summary.rows) > MOST_ROWS:
        table.add_row(f"and {len(summary.rows) - MOST_ROWS} more")
    table.add_section()
    counts = [str(sum(row.n_train for row in summary.rows)), str(sum(row.n_test for row in summary.rows))]
    totals = [size(summary.total_bytes("up")), size(summary.total_bytes("down"))]
    found = [statistics for model in models if (statistics := summary.statistics(model))]
    gap = [""] * len(optional)
    table.add_row("mean", *counts, *gap, *[percent(f["mean"]) for f in found], *totals, style="bold")
    for name, key in (("± 95 %", "ci95"), ("worst", "worst"), ("spread", "spread")):
        table.add_row(name, "", "", *gap, *[percent(f[key]) for f in found])
    return table


def _title(summary: Summary) -> str:
    metric = "accuracy" if summary.metric == "accuracy" else "share of answer tokens predicted"
    return f"{summary.method}, {summary.rounds} rounds: {metric} on each client's own test items, %"


def _caption(summary: Summary) -> str:
    parts = []
    if summary.chance is not None and summary.majority is not None:
        parts.append(f"chance {percent(summary.chance)}, most frequent answer {percent(summary.majority)}")
    parts.append("± from the choice of test items, not of the seed")
    parts.append("bytes: whole run, up from and down to each client, headers and final evaluation included")
    if summary.failures:
        parts.append(f"{summary.failures} failed replies, see rounds.jsonl")
    if absent := sorted({f.client for f in summary.evaluation_failures} - {row.id for row in summary.rows}):
        parts.append(f"no row for {', '.join(absent)}, which did not answer in the end, see summary.json")
    if summary.epsilon is not None:
        parts.append(f"clients' changes are private to epsilon {summary.epsilon:.3g}, delta {summary.delta:g}")
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
