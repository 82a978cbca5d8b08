"""One HTML page about a finished run, with all that it needs inside: `capfl report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from capfl.files import write_atomically
from capfl.history import History
from capfl.report import charts
from capfl.report.summary import MODELS, Summary, read_summary
from capfl.report.tables import MOST_ROWS, bytes_table, client_table, duration, group_lines, notes, scored_words
from capfl.types import RoundRecord

TEMPLATE = Path(__file__).with_name("page.html")


def write_page(path: Path, out: Path) -> Path:
    """Write the page of the finished run in a folder. It loads nothing, from nowhere. Returns where it is.

    Raises:
        CheckpointError: the folder is no run, the run is not finished, or its files do not agree.
    """
    summary = read_summary(path)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        title=f"{summary.method}, {len(summary.rows)} clients",
        subtitle=f"{summary.rounds} rounds in {duration(summary.seconds)}; {path.absolute().name}",
        scored=f"{scored_words(summary)}, %",
        clients=client_table(summary, len(summary.rows)).html(),
        groups=group_lines(summary),
        notes=notes(summary),
        figures=figures(summary, History(path / "rounds.jsonl").read()[0]),
        bytes=[bytes_table(summary, direction).html() for direction in ("up", "down")],
        files={name: (path / name).read_text(encoding="utf-8") for name in ("config.toml", "run.json")},
    )
    write_atomically(out, text.encode())
    return out


def figures(summary: Summary, records: Sequence[RoundRecord]) -> dict[str, Markup]:
    """Heading -> figure, as far as there is something to draw."""
    models = {m: words for m, words in MODELS.items() if all(getattr(row, m) is not None for row in summary.rows)}
    scores = [(row.id, [100 * getattr(row, model) for model in models]) for row in summary.rows[:MOST_ROWS]]
    found = {"Score of every client, %": charts.bars(scores, models, "Score of every client")}
    if len(summary.metrics) == 1 and (points := _validations(records, len(summary.rows))):
        chance = summary.mean("chance", summary.metrics[0])
        title = "Validation of the shared adapters against bytes, %"
        found[title] = charts.curve(
            points, "bytes for each client, both directions", title, None if chance is None else 100 * chance
        )
    losses = [(record.round, list(record.losses.values())) for record in records if record.losses]
    ranks = [(record.round, list(map(fmean, record.ranks.values()))) for record in records if record.ranks]
    for values, title in ((losses, "Training loss, nats a token"), (ranks, "Mean rank of a client's modules")):
        if values:
            found[title] = charts.curve([(n, fmean(own), min(own), max(own)) for n, own in values], "round", title)
    return found


def _validations(records: Sequence[RoundRecord], clients: int) -> list[tuple[float, float, float, float]]:
    points, spent = [], 0
    for record in records:
        spent += record.bytes_up + record.bytes_down
        if record.validation_accuracy is not None:
            share = 100 * record.validation_accuracy
            points.append((spent / clients, share, share, share))
    return points
