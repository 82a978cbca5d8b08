"""One HTML page about a finished run, with all that it needs inside: `capfl report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from capfl import metrics
from capfl.errors import number, printable
from capfl.files import write_atomically
from capfl.history import History
from capfl.report import charts
from capfl.report.findings import findings, glossary, verdicts
from capfl.report.summary import MODELS, Summary, read_summary
from capfl.report.tables import (
    METRICS_TITLE,
    MOST_ROWS,
    bytes_table,
    client_table,
    duration,
    group_lines,
    metrics_table,
    scored_words,
    unit,
)  # fmt: skip
from capfl.samples import read_samples
from capfl.types import RoundRecord

SAMPLED, EACH = 4, 2  # clients whose samples are on the page, and how many of each
LONGEST = 2000  # characters of a text of a sample
TEMPLATE = Path(__file__).with_name("page.html")


def write_page(path: Path, out: Path) -> Path:
    """Write the page of the finished run in a folder. It loads nothing, from nowhere. Returns where it is.

    Raises:
        CheckpointError: the folder is no run, the run is not finished, or its files do not agree.
    """
    summary = read_summary(path)
    text = rendered(
        path,
        title=f"{summary.method}, {number(summary.n_clients, 'client')}",
        subtitle=f"{number(summary.rounds, 'round')} in {duration(summary.seconds)}; {path.absolute().name}",
        scored=scored_words(summary),
        clients=client_table(summary, len(summary.rows)).html(),
        metrics=others.html() if (others := metrics_table(summary)) else "",
        groups=group_lines(summary),
        verdicts=verdicts(summary),
        findings=findings(summary),
        glossary=glossary(summary),
        figures=figures(summary, History(path / "rounds.jsonl").read()[0]),
        samples=shown_samples(path),
        bytes=[bytes_table(summary, direction).html() for direction in ("up", "down")],
        files=("config.toml", "run.json"),
    )
    write_atomically(out, text.encode())
    return out


def rendered(path: Path, *, files: Sequence[str], again: int = 0, **parts: object) -> str:
    """The page of a run's folder as HTML.

    Args:
        files: of the folder, which the page shows whole.
        again: seconds after which a browser loads the page again; 0: never.
        parts: what the template asks for; what is left out is empty.
    """
    empty = dict.fromkeys(("metrics", "groups", "verdicts", "findings", "glossary", "samples", "bytes"), "")
    shown = {name: (path / name).read_text(encoding="utf-8") for name in files}
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return page.render(empty | parts, metrics_title=METRICS_TITLE, files=shown, again=again)


def figures(summary: Summary, records: Sequence[RoundRecord]) -> dict[str, Markup]:
    """Heading -> figure, as far as there is something to draw."""
    found = {}
    for metric in summary.leading:
        rows = [row for row in summary.rows if row.metric == metric][:MOST_ROWS]
        models = {m: words for m, words in MODELS.items() if all(m in row.scores for row in rows)}
        factor, axis = (100, "%") if metrics.metric(metric).is_share else (1, metric)
        title = f"Every client, {unit(metric)}"
        bars = [(row.id, [factor * (row.value(model) or 0.0) for model in models]) for row in rows]
        found[title] = charts.bars(bars, models, title, axis)
        first = metrics.of_task(metrics.VALIDATED, metrics.metric(metric).task)[0]
        if len(summary.leading) == 1 and (points := validations(records, summary.n_clients, first)):
            chance = summary.mean("chance", metric) if first == "accuracy" else None
            title = f"Validation of the shared adapters against bytes, {unit(first)}"
            found[title] = charts.curve(
                points, "bytes for each client, both directions", title, None if chance is None else 100 * chance
            )
    return found | curves(records)


def curves(records: Sequence[RoundRecord]) -> dict[str, Markup]:
    """Heading -> curve over rounds, of what is known while a run goes on."""
    found = {}
    losses = [(record.round, list(record.losses.values())) for record in records if record.losses]
    ranks = [(record.round, list(map(fmean, record.ranks.values()))) for record in records if record.ranks]
    for values, title in ((losses, "Training loss, nats a token"), (ranks, "Mean rank of a client's modules")):
        if values:
            found[title] = charts.curve([(n, fmean(own), min(own), max(own)) for n, own in values], "round", title)
    return found


def validations(records: Sequence[RoundRecord], clients: int, metric: str) -> list[tuple[float, float, float, float]]:
    """Points of a curve: bytes for each client so far, and a metric on validation items."""
    points, spent, factor = [], 0, 100 if metrics.metric(metric).is_share else 1
    for record in records:
        spent += record.bytes_up + record.bytes_down
        if metric in record.validation:
            value = factor * record.validation[metric]
            points.append((spent / clients, value, value, value))
    return points


def shown_samples(path: Path) -> list[dict[str, object]]:
    """The first samples of the first clients: client, prompt, right answer, and answers by model.

    Models write what they like, so control characters are escaped; the template escapes the rest.
    """
    found: list[dict[str, object]] = []
    for client, samples in list(read_samples(path).items())[:SAMPLED]:
        for sample in samples[:EACH]:
            texts = {"prompt": sample.prompt, "right": sample.right}
            answers = {words: sample.answers[model] for model, words in MODELS.items() if model in sample.answers}
            said = {key: printable(text, LONGEST) for key, text in texts.items()}
            found.append({"client": client, **said, "answers": {k: printable(t, LONGEST) for k, t in answers.items()}})
    return found
