"""The runs of a comparison: each in a process and a folder of its own, what is finished stays, the rest goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from capfl.compare.spec import Cell, Plan
from capfl.errors import ConfigError, DataError
from capfl.files import write_atomically


def run_all(plan: Plan, out: Path, processes: int, note: Callable[[str], None]) -> list[Cell]:
    """Run what is not finished, ``processes`` runs at a time. Returns the cells that failed; others still run.

    Raises:
        ConfigError, DataError: the rows that a split keeps cannot be taken.
    """
    waiting = [cell for cell in plan.cells if not (out / cell.name / "summary.json").is_file()]
    note(f"{len(plan.cells)} runs, {len(plan.cells) - len(waiting)} finished before, in {out}")
    data = {split: kept_rows(plan, split, out) for split in dict.fromkeys(cell.split for cell in waiting)}
    failed = []
    pool = ThreadPoolExecutor(processes)
    try:
        futures = {pool.submit(_run, plan, cell, data[cell.split], out): cell for cell in waiting}
        for done, future in enumerate(as_completed(futures), start=1):
            cell = futures[future]
            if future.result():
                failed.append(cell)
            said = f"FAILED, see {out / cell.name}.log" if cell in failed else "done"
            note(f"{done}/{len(waiting)} {cell.name} {said}")
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption reaches the runs as well: none is started after it
    return failed


def _run(plan: Plan, cell: Cell, data: Path | None, out: Path) -> int:
    folder = out / cell.name
    if (folder / "config.toml").is_file():
        words = ["--resume", str(folder)]
    else:
        settings = {"runtime.cache_dir": str(out / "hidden")} | dict(cell.settings)  # one split and seed, one base
        settings |= {"seed": cell.seed, "out": str(folder)}
        settings |= {"data.dir": str(data)} if data else {}
        words = [str(plan.base)]
        words += [word for key, value in settings.items() for word in ("--set", f"{key}={_text(value)}")]
    words += ["--rows", str(plan.rows)] if plan.rows else []
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{cell.name}.log").open("a") as log:
        return subprocess.run([sys.executable, "-m", "capfl.cli", "run", *words], stdout=log, stderr=log).returncode


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def kept_rows(plan: Plan, split: str, out: Path) -> Path | None:
    """A data folder with the rows that a split keeps alone, or None if it keeps all.

    Raises:
        ConfigError: the split keeps rows, but its data are not in files.
        DataError: a file has no such field, or no row is kept.
    """
    keep = plan.spec.splits[split].keep
    if not keep:
        return None
    config = plan.configs[next(cell.name for cell in plan.cells if cell.split == split)].data
    if config.dir is None:
        raise ConfigError(f"splits.{split}.keep: takes rows of files; say where they are with --data-dir")
    place = out / "data" / split
    for name in config.sets:
        source = Path(config.dir) / name / f"{config.split}.jsonl"
        if not source.is_file():
            raise DataError(f"{source}: no such file, and splits.{split} keeps rows of it")
        rows = [line for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
        kept = rows
        for field, values in keep.items():
            try:
                kept = [line for line in kept if str(json.loads(line)[field]) in values]
            except (KeyError, ValueError) as error:
                raise DataError(f"{source}: a row is no JSON or has no {field!r}, by which rows are kept") from error
        if not kept:
            raise DataError(f"{source}: splits.{split} keeps none of its {len(rows)} rows; check the values of keep")
        write_atomically(place / name / f"{config.split}.jsonl", ("\n".join(kept) + "\n").encode())
    return place
