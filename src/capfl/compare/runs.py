"""The runs of a comparison: each in a process and a folder of its own; what is finished stays, the rest goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from capfl.compare.spec import Cell, Plan
from capfl.config import Config, load_config, to_toml
from capfl.config.keys import flat
from capfl.config.load import from_toml
from capfl.config.runtime import DISK
from capfl.errors import CheckpointError, ConfigError, DataError, printable
from capfl.files import read_json, write_atomically
from capfl.report.summary import Summary, read_summary

Results = dict[str, dict[str, dict[int, Summary]]]
"""Split -> variant -> seed -> summary, in the order of the spec, finished runs alone."""


def unfinished(plan: Plan, out: Path) -> list[Cell]:
    return [cell for cell in plan.cells if not (out / cell.name / "summary.json").is_file()]


def run_all(plan: Plan, out: Path, processes: int, note: Callable[[str], None]) -> list[Cell]:
    """Run what is not finished, ``processes`` runs at a time. Returns the cells that failed; others still run.

    Raises:
        ConfigError, DataError: the rows that a split keeps cannot be taken.
    """
    waiting = unfinished(plan, out)
    note(f"{len(plan.cells)} runs, {len(plan.cells) - len(waiting)} finished before, in {out}")
    data = {cell.split: kept_rows(plan, cell, out) for cell in {cell.split: cell for cell in waiting}.values()}
    failed = []
    pool = ThreadPoolExecutor(processes)
    try:
        futures = {pool.submit(_run, plan, cell, data[cell.split], out): cell for cell in waiting}
        for done, future in enumerate(as_completed(futures), start=1):
            cell = futures[future]
            log = out / f"{cell.name}.log"
            if future.result():
                failed.append(cell)
            said = f"FAILED{_last_words(log)}, see {log}" if cell in failed else "done"
            note(f"{done}/{len(waiting)} {cell.name} {said}")
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption reaches the runs as well: none is started after it
    return failed


def _last_words(log: Path) -> str:
    """The last line of a run's log, which says what went wrong."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((f": {printable(line.strip(), 300)}" for line in reversed(lines) if line.strip()), "")


def _run(plan: Plan, cell: Cell, data: Path | None, out: Path) -> int:
    folder, file = out / cell.name, out / f"{cell.name}.toml"
    if (folder / "config.toml").is_file():
        words = ["--resume", str(folder)]
    else:
        cache = cell.config.runtime.cache
        shared = f"{out}/hidden" if cache == DISK else cache  # one split and seed, one base
        settings = {"out": str(folder), "runtime.cache": shared} | ({"data.dir": str(data)} if data else {})
        write_atomically(file, to_toml(from_toml(to_toml(cell.config), settings)).encode())
        words = [str(file)]
    words += ["--rows", str(plan.rows)] if plan.rows else []
    with (out / f"{cell.name}.log").open("a") as log:
        return subprocess.run([sys.executable, "-m", "capfl", "run", *words], stdout=log, stderr=log).returncode


def kept_rows(plan: Plan, cell: Cell, out: Path) -> Path | None:
    """A data folder with the rows that the cell's split keeps alone, or None if it keeps all.

    Raises:
        ConfigError: the split keeps rows, but its data are not in files.
        DataError: a file has no such field, or no row is kept.
    """
    keep, config = plan.spec.splits[cell.split].keep, cell.config.data
    if not keep:
        return None
    if config.dir is None:
        raise ConfigError(
            f"splits.{cell.split}.keep: selects rows of data files; say where the files are with --data-dir"
        )
    place = out / "data" / cell.split
    for name in config.sets:
        source = Path(config.dir) / name / f"{config.split}.jsonl"
        if not source.is_file():
            raise DataError(f"{source}: no such file, and splits.{cell.split} keeps rows of it")
        rows = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
        try:
            kept = [row for row in rows if all(str(json.loads(row)[field]) in keep[field] for field in keep)]
        except (KeyError, ValueError) as error:
            raise DataError(f"{source}: a row is no JSON or lacks a field by which rows are kept: {error}") from error
        if not kept:
            raise DataError(
                f"{source}: splits.{cell.split} keeps none of its {len(rows)} rows; check the values of keep"
            )
        write_atomically(place / name / f"{config.split}.jsonl", ("\n".join(kept) + "\n").encode())
    return place


def read_results(plan: Plan, out: Path) -> Results:
    """Every finished run of a plan.

    Raises:
        CheckpointError: a folder is of another config than the spec says, or two runs of one split and seed had
            other data: they cannot be compared.
    """
    found: Results = {}
    data: dict[tuple[str, int], tuple[str, Path]] = {}
    for cell in plan.cells:
        folder = out / cell.name
        if not (folder / "config.toml").is_file():
            continue
        _check(folder, cell)
        if not (folder / "summary.json").is_file():
            continue
        digest = read_json(folder / "run.json")["data"]
        other, where = data.setdefault((cell.split, cell.seed), (digest, folder))
        if other != digest:
            raise CheckpointError(
                f"{folder} and {where} had different data or partitions; only [splits.*] may change them. "
                "Move one away and run it again"
            )
        found.setdefault(cell.split, {}).setdefault(cell.variant, {})[cell.seed] = read_summary(folder)
    return found


def _check(folder: Path, cell: Cell) -> None:
    """Was the run in a folder started with the config that the spec says? Where it ran and its data lay may differ."""
    try:
        ran = _comparable(load_config(folder / "config.toml"))
    except ConfigError as error:
        raise CheckpointError(f"{folder} is of another version of capfl: {error}; move it away") from error
    wanted = _comparable(cell.config)
    if wanted["data.date"] is None:  # then it is the day on which the run began
        ran["data.date"] = None
    if wrong := [f"{key} = {ran[key]!r}, the spec {wanted[key]!r}" for key in wanted if wanted[key] != ran[key]]:
        raise CheckpointError(
            f"{folder} was run with {'; '.join(wrong)}. Correct the spec, or move the folder away and run it again"
        )


def _comparable(config: Config) -> dict[str, object]:
    return dict(flat(config.model_dump(exclude={"out": True, "runtime": True, "data": {"dir"}})))
