"""What pages of runs and of comparisons have in common: figures, the ledger, how it was made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from capfl.config import Config
from capfl.config.keys import flat
from capfl.page import charts
from capfl.report.summary import MODELS, PARTS, ClientRow
from capfl.report.tables import MOST_ROWS

PART_CSS = {part: f"s{i}" for i, part in enumerate(PARTS)}


@dataclass(frozen=True)
class Figure:
    """A chart with its heading, what its colours are, and what it says."""

    title: str
    image: Markup
    legend: tuple[tuple[str, str], ...] = ()  # (class, name)
    note: str = ""


def client_bars(rows: Sequence[ClientRow]) -> Figure:
    """Score of every model that all clients have."""
    models = [model for model in MODELS if all(getattr(row, model) is not None for row in rows)]
    groups = [(row.id, [100 * getattr(row, model) for model in models]) for row in rows[:MOST_ROWS]]
    image = charts.bars(groups, [f"m-{model}" for model in models], "right, %", "Test score of each client")
    names = tuple((f"m-{model}", MODELS[model]) for model in models)
    return Figure("Every client", image, names, _first(rows))


def rank_map(rows: Sequence[ClientRow], full: int) -> Figure | None:
    """Clients by modules, or None where nobody dropped a rank."""
    if all(rank == full for row in rows for rank in row.ranks.values()):
        return None
    modules = list(rows[0].ranks)
    groups = [(name, len(list(own))) for name, own in groupby(modules, _layer)]
    cells = [(row.id, [row.ranks[module] for module in modules]) for row in rows[:MOST_ROWS]]
    image = charts.heat(cells, groups, full, "Ranks that each client keeps in each module")
    kinds = ", ".join(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    note = f"From empty (rank 0) to full colour (rank {full}). Within a layer: {kinds}. {_first(rows)}".strip()
    return Figure("Ranks that clients keep", image, (), note)


def _layer(module: str) -> str:
    found = re.search(r"\.(\d+)\.", f".{module}.")
    return found.group(1) if found else module


def ledger_figure(rows: Sequence[tuple[str, Mapping[str, float]]], title: str, note: str) -> Figure:
    used = [part for part in PARTS if any(own.get(part) for _, own in rows)]
    image = charts.stacked([(name, {p: own.get(p, 0) for p in used}) for name, own in rows], PART_CSS, title)
    return Figure(title, image, tuple((PART_CSS[part], part) for part in used), note)


def command(config: Config) -> str:
    """The command that runs this config: every key that is not at its default, a line each."""
    usual = dict(flat(Config().model_dump()))
    words = ["capfl run"]
    for key, value in flat(config.model_dump()):
        if value != usual[key]:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{key} {shlex.quote(text)}")
    return " \\\n  ".join(words)


def machine(run: Mapping[str, Any]) -> str:
    """From run.json: when, with what, on what."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    where = run["machine"]
    return (
        f"Started {run['started']}; Python {run['python']}; {versions}; {where['system']} on {where['architecture']}, "
        f"{where['threads']} {'thread' if where['threads'] == 1 else 'threads'}."
    )


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _first(clients: Sequence[object]) -> str:
    return f"The first {MOST_ROWS} of {len(clients)} clients." if len(clients) > MOST_ROWS else ""
