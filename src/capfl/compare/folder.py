"""The folder of a comparison: run folders SPLIT.VARIANT.SEED with their configs and logs, and what came out.

``comparison.json`` has every row with a value for each seed, and the command; ``table.md`` and ``figure.svg`` are for
people.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.text import Text

from capfl import metrics
from capfl.compare.runs import read_results, run_all, unfinished
from capfl.compare.spec import Cell, Plan
from capfl.compare.table import Row, by_split, caption, make_rows, markdown, tables
from capfl.errors import CheckpointError, ConfigError
from capfl.files import write_atomically
from capfl.report.tables import unit

ROWS = "rows.py"  # a copy of the file of methods


@dataclass(frozen=True)
class Found:
    """What is finished of a comparison: Markdown as text, and in a terminal tables of its width."""

    rows: Sequence[Row]
    missing: Sequence[str]
    plan: Plan

    def __str__(self) -> str:
        text = markdown(self.rows, self.plan)
        return f"{text}\n{self._unfinished}\n" if self.missing else text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for split, about, table in tables(self.rows, self.plan):
            yield Group(Text(f"{split}: {about}", style="bold"), table, "")
        yield from (Text(line, style="dim") for line in caption(self.rows, self.plan))
        if self.missing:
            yield Text(f"\n{self._unfinished}")

    @property
    def _unfinished(self) -> str:
        more = f" and {len(self.missing) - 8} more" if len(self.missing) > 8 else ""
        return f"Not finished: {len(self.missing)} of {len(self.plan.cells)} runs: {', '.join(self.missing[:8])}{more}."


Note = Callable[[str | Found], None]


def compare(plan: Plan, out: Path, processes: int, command: Sequence[str], note: Note) -> list[Cell]:
    """Run what is not finished, then write and print the table of what is. Returns the runs that failed.

    Raises:
        CheckpointError: a folder is of another config or of other data than the spec says, or the methods have changed.
        ConfigError: a variant names a method that is not there, or the file of methods is wrong.
        DataError: the rows that a split keeps cannot be taken.
    """
    _check_methods(plan, out)
    read_results(plan, out)  # what is there already must fit before hours are spent beside it
    failed = run_all(plan, out, processes, note)
    rows, missing = make_rows(read_results(plan, out), plan), [cell.name for cell in unfinished(plan, out)]
    if not rows:
        return failed
    text = Found(rows, missing, plan)
    write_atomically(out / "table.md", str(text).encode())
    _draw(rows, plan, out / "figure.svg")
    found = {
        "command": ["capfl", *command],
        "version": importlib.metadata.version("capfl"),
        "score": plan.spec.score,
        "metrics": plan.spec.metrics,
        "baseline": plan.baseline,
        "unfinished": missing,
        "rows": [row.to_json() for row in rows],
    }
    write_atomically(out / "comparison.json", (json.dumps(found, indent=1) + "\n").encode())
    note("")
    note(text)
    note(f"\ncomparison.json, table.md and figure.svg are in {out}")
    return failed


def table(plan: Plan, out: Path) -> Found:
    """The table of what is finished, and what is not.

    Raises:
        CheckpointError: nothing is, or a folder is of another config or of other data than the spec says.
    """
    rows = make_rows(read_results(plan, out), plan)
    if not rows:
        raise CheckpointError(f"{out} has no finished run of this spec; run it with: capfl compare SPEC --out {out}")
    return Found(rows, [cell.name for cell in unfinished(plan, out)], plan)


def _draw(rows: Sequence[Row], plan: Plan, path: Path) -> None:
    from capfl.report.charts import scores  # matplotlib takes a while to load

    panels, plain = {}, []
    for (split, metric), own in by_split(rows).items():
        title, is_share = f"{split}, {unit(metric)}", metrics.metric(metric).is_share
        factor = 100 if is_share else 1
        panels[title] = {row.label: [factor * value for value in row.values[plan.spec.score]] for row in own}
        plain += [] if is_share else [title]
    scores(panels, f"{plan.spec.score} adapter: mean over clients, a dot for each seed", path, plain)


def _check_methods(plan: Plan, out: Path) -> None:
    """Are all methods there, and is the file of methods that which the folder's runs were made with?"""
    from capfl.compare.rows import load_rows  # a table of what is finished needs no methods, and no torch
    from capfl.methods import METHODS

    known = METHODS.keys() | (load_rows(plan.rows).keys() if plan.rows else ())
    for cell in plan.cells:
        if (name := cell.config.method.name) not in known:
            raise ConfigError(
                f"{cell.split}.{cell.variant}: method.name: no method {name!r}; choose from {', '.join(sorted(known))}"
            )
    if plan.rows is None:
        return
    if (out / ROWS).is_file() and (out / ROWS).read_bytes() != plan.rows.read_bytes():
        raise CheckpointError(
            f"{plan.rows} has changed since the runs in {out} were made, which have a copy of it in {ROWS}; restore "
            "it, or give another folder with --out"
        )
    write_atomically(out / ROWS, plan.rows.read_bytes())
