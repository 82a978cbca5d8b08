"""One HTML page about a finished run, with all that it needs inside: `capfl report`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from capfl.checkpoint import RunFolder
from capfl.config import Config, load_config
from capfl.config.flags import as_flag
from capfl.config.keys import flat
from capfl.files import write_atomically
from capfl.report import charts
from capfl.report.plan import duration
from capfl.report.summary import MODELS, Summary, read_summary
from capfl.report.tables import MOST_ROWS, bytes_table, client_table, group_lines, notes, scored_words
from capfl.types import RoundRecord

TEMPLATE = Path(__file__).with_name("page.html")


def write_page(path: Path, out: Path) -> Path:
    """Write the page of the finished run in a folder. It loads nothing, from nowhere. Returns where it is.

    Raises:
        CheckpointError: the folder is no run, the run is not finished, or its files do not agree.
    """
    folder, summary = RunFolder(path), read_summary(path)
    config = load_config(path / "config.toml")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(
        title=f"{summary.method} on {', '.join(Path(name).stem for name in config.data.sets)}",
        subtitle=f"{config.model.path}, {config.partition.kind}, seed {config.seed}, {summary.rounds} rounds in "
        f"{duration(summary.seconds)}",
        scored=f"{scored_words(summary)}, %",
        clients=client_table(summary, len(summary.rows)).html(),
        groups=group_lines(summary),
        notes=notes(summary),
        figures=figures(summary, folder.rounds(), config.lora.rank),
        bytes=[bytes_table(summary, direction).html() for direction in ("up", "down")],
        command=command(config),
        config=(path / "config.toml").read_text(encoding="utf-8"),
        machine=machine(folder.read_json("run.json")),
    )
    write_atomically(out, text.encode())
    return out


# -- figures ---------------------------------------------------------------------------------------------


def figures(summary: Summary, records: Sequence[RoundRecord], rank: int) -> dict[str, Markup]:
    """Heading -> figure, as far as there is something to draw."""
    rows = summary.rows[:MOST_ROWS]
    models = {m: words for m, words in MODELS.items() if all(getattr(row, m) is not None for row in summary.rows)}
    scores = [(row.id, [100 * getattr(row, model) for model in models]) for row in rows]
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
    if any(kept != rank for row in rows for kept in row.ranks.values()):
        title = "Ranks that clients keep in each module"
        layers = [_layer(module) for module in rows[0].ranks]
        found[title] = charts.heat([(row.id, list(row.ranks.values())) for row in rows], layers, rank, title)
    return found


def _validations(records: Sequence[RoundRecord], clients: int) -> list[tuple[float, float, float, float]]:
    points, spent = [], 0
    for record in records:
        spent += record.bytes_up + record.bytes_down
        if record.validation_accuracy is not None:
            share = 100 * record.validation_accuracy
            points.append((spent / clients, share, share, share))
    return points


def _layer(module: str) -> str:
    found = re.search(r"\.(\d+)\.", f".{module}.")
    return found.group(1) if found else module


# -- how it was made -------------------------------------------------------------------------------------


def command(config: Config) -> str:
    """The command that runs this config: every key that is not at its default, a line each."""
    usual = dict(flat(Config().model_dump()))
    lines = ["capfl run"]
    for key, value in flat(config.model_dump()):
        if value != usual[key]:
            lines.append(as_flag(key, value) if isinstance(value, tuple) else f"--{key} {shlex.quote(str(value))}")
    return " \\\n  ".join(lines)


def machine(run: Mapping[str, Any]) -> str:
    """From run.json: when, with what, on what."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    where = run["machine"]
    return (
        f"Started {run['started']}; Python {run['python']}; {versions}; {where['system']} on {where['architecture']}, "
        f"{where['threads']} {'thread' if where['threads'] == 1 else 'threads'}."
    )
