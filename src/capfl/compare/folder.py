"""The folder of a comparison: run folders SPLIT.VARIANT.SEED with their logs, spec.toml and base.toml, and the table.

``comparison.json`` has every row with a value for each seed, what was chosen on the command line, and the command;
``table.md`` and ``table.csv`` are for people and for spreadsheets.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from capfl.checkpoint import RunFolder
from capfl.compare.results import read_results, unfinished
from capfl.compare.rows import load_rows
from capfl.compare.run import run_all
from capfl.compare.spec import Cell, Plan, make_plan
from capfl.compare.table import Row, as_csv, make_rows, markdown
from capfl.errors import CheckpointError, ConfigError
from capfl.files import write_atomically
from capfl.methods import METHODS

NAME = "comparison.json"
ROWS = "rows.py"


def compare(
    plan: Plan, spec: Path, out: Path, processes: int, command: Sequence[str], note: Callable[[str], None]
) -> list[Cell]:
    """Run what is not finished, then write and print the table of what is. Returns the runs that failed.

    Raises:
        CheckpointError: a folder is of another config or of other data than the spec says.
        ConfigError: a variant names a method that is not there, or the file of methods is wrong.
        DataError: the rows that a split keeps cannot be taken.
    """
    check_methods(plan, out)
    read_results(plan, out)  # what is there already must fit before hours are spent beside it
    failed = run_all(plan, out, processes, note)
    rows = make_rows(read_results(plan, out), plan)
    if not rows:
        return failed
    write(plan, spec, out, rows, command)
    note("\n" + table(plan, out))
    note(f"{NAME}, table.md and table.csv are in {out}")
    return failed


def check_methods(plan: Plan, out: Path) -> None:
    """Are all methods there, and is the file of methods that which the folder's runs were made with?

    Raises:
        ConfigError: a variant names a method that is not there, or the file of methods cannot be used.
        CheckpointError: the file of methods has changed.
    """
    known = METHODS.keys() | (load_rows(plan.rows).keys() if plan.rows else ())
    for cell in plan.cells:
        if (name := plan.configs[cell.name].method.name) not in known:
            raise ConfigError(
                f"{cell.split}.{cell.label}: method.name: no method {name!r}; choose from {', '.join(known)}"
            )
    if plan.rows and (out / ROWS).is_file() and (out / ROWS).read_bytes() != plan.rows.read_bytes():
        raise CheckpointError(
            f"{plan.rows} has changed since the runs in {out} were made, which have a copy of it in {ROWS}; restore "
            "it, or give another folder with --out"
        )


def table(plan: Plan, out: Path) -> str:
    """The Markdown table of what is finished, and what is not.

    Raises:
        CheckpointError: nothing is, or a folder is of another config or of other data than the spec says.
    """
    rows, missing = make_rows(read_results(plan, out), plan), unfinished(plan, out)
    if not rows:
        raise CheckpointError(f"{out} has no finished run of this spec; run it with: capfl compare SPEC --out {out}")
    return markdown(rows, plan) + _missing(missing, len(plan.cells))


def write(plan: Plan, spec: Path, out: Path, rows: Sequence[Row], command: Sequence[str]) -> None:
    """The files of the comparison, with copies of spec and base, so that the folder can be read by itself."""
    raw: dict[str, Any] = tomllib.loads(spec.read_text(encoding="utf-8")) | {"base": "base.toml"}
    if plan.rows:
        raw["rows"] = ROWS
        write_atomically(out / ROWS, plan.rows.read_bytes())
    write_atomically(out / "base.toml", plan.base.read_bytes())
    write_atomically(out / "spec.toml", tomli_w.dumps(raw).encode())
    missing = unfinished(plan, out)
    write_atomically(out / "table.md", (markdown(rows, plan) + _missing(missing, len(plan.cells))).encode())
    write_atomically(out / "table.csv", as_csv(rows).encode())
    RunFolder(out).write_json(NAME, {
        "command": ["capfl", *command],
        "version": importlib.metadata.version("capfl"),
        "score": plan.spec.score,
        "baseline": plan.baseline,
        "chosen": {"splits": plan.splits, "only": plan.labels, "seeds": sorted({cell.seed for cell in plan.cells})},
        "unfinished": [cell.name for cell in missing],
        "rows": [row.to_json() for row in rows],
    })  # fmt: skip


def read_plan(out: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan that a folder was made by, and its comparison.json.

    Raises:
        CheckpointError: the folder is of no comparison.
    """
    said = RunFolder(out).read_json(NAME)
    chosen = said["chosen"]
    plan = make_plan(out / "spec.toml", chosen["splits"], chosen["only"], chosen["seeds"], None, said["baseline"])
    return plan, said


def _missing(cells: Sequence[Cell], n_cells: int) -> str:
    if not cells:
        return ""
    names = ", ".join(cell.name for cell in cells[:8]) + (f" and {len(cells) - 8} more" if len(cells) > 8 else "")
    return f"\nNot finished: {len(cells)} of {n_cells} runs: {names}.\n"
