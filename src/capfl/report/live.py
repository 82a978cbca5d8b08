"""The page of a run that is going on, which a browser loads again by itself: `capfl report --watch`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from capfl.config import Config, load_config
from capfl.errors import CheckpointError
from capfl.files import is_locked, write_atomically
from capfl.history import History
from capfl.report import charts
from capfl.report.page import curves, rendered, validations, write_page
from capfl.report.tables import Table, size, unit
from capfl.types import ClientId, RoundRecord

EVERY = 5.0  # seconds, between looks at the files and between loads of the page


def watch(path: Path, out: Path, say: Callable[[str], None], pause: Callable[[float], None] = time.sleep) -> Path:
    """Write the page of a run whenever a round is finished, until the run is; then the whole page. Returns its place.

    Args:
        say: is told once where the page is.
        pause: waits for so many seconds.

    Raises:
        CheckpointError: the folder is no run, or its files do not agree.
    """
    before: object = None
    while not (path / "summary.json").is_file():
        files = sorted(path.glob("**/rounds.jsonl"))
        now = is_locked(path), [(file, file.stat().st_size) for file in files]
        if now != before:
            write_page_so_far(path, out)
        if before is None:
            say(f"{out} is written again after each round, until the run ends; stop with Ctrl-C")
        before = now
        pause(EVERY)
    return write_page(path, out)


def write_page_so_far(path: Path, out: Path) -> Path:
    """Write the page of the rounds that are finished. A browser loads it again every few seconds.

    Raises:
        CheckpointError: the folder is no run, or a record is damaged.
    """
    if not (path / "config.toml").is_file():
        raise CheckpointError(f"{path} has no config.toml: not a run folder; give the folder that `capfl run` names")
    config = load_config(path / "config.toml")
    records, _ = History(path / "rounds.jsonl").read()
    state = "the run is active, and this page reloads itself"
    if not is_locked(path):
        state = f"no process works on this run; continue with: capfl run --resume {path}"
    text = rendered(
        path,
        title=f"{config.method.name}, {_done(records, config)} so far",
        subtitle=f"{state}; {path.absolute().name}",
        scored="what their training has come to",
        clients=_clients(records).html(),
        findings=[*_references(path, config), *_failures(records)],
        figures=_figures(records),
        files=[name for name in ("config.toml", "run.json") if (path / name).is_file()],
        again=round(EVERY),
    )
    write_atomically(out, text.encode())
    return out


def _done(records: Sequence[RoundRecord], config: Config) -> str:
    return f"round {records[-1].round if records else 0} of {config.federation.rounds}"


def _clients(records: Sequence[RoundRecord]) -> Table:
    """A line for each client that has trained: its losses, if they are known, and its bytes."""
    losses: dict[ClientId, list[float | None]] = {}
    sent: dict[ClientId, dict[str, int]] = {}
    for record in records:
        for client in record.clients:
            losses.setdefault(client, []).append(record.losses.get(client))
        for entry in record.ledger:
            own = sent.setdefault(entry.client, {"up": 0, "down": 0})
            own[entry.direction] += entry.bytes
    groups: Mapping[ClientId, str] = records[-1].groups if records else {}
    rows = [
        [client, groups.get(client, ""), str(len(own)), *("" if n is None else f"{n:.3f}" for n in (own[0], own[-1])),
         *(size(sent.get(client, {}).get(direction, 0)) for direction in ("up", "down"))]
        for client, own in sorted(losses.items())
    ]  # fmt: skip
    return Table(["client", "group", "rounds", "first loss", "last loss", "up", "down"], rows)


def _references(path: Path, config: Config) -> list[str]:
    found = [(file.parent.name, History(file).last()) for file in sorted(path.glob("references/*/rounds.jsonl"))]
    return [f"{name}: {_done([last], config)}" for name, last in found if last]


def _failures(records: Sequence[RoundRecord]) -> list[str]:
    number = sum(len(record.failures) for record in records)
    return [f"{number} failed replies, see rounds.jsonl"] if number else []


def _figures(records: Sequence[RoundRecord]) -> dict[str, object]:
    found: dict[str, object] = dict(curves(records))
    clients = len({client for record in records for client in record.clients})
    for metric in records[-1].validation if records and clients else ():
        title = f"Validation of the shared adapters against bytes, {unit(metric)}"
        points = validations(records, clients, metric)
        found[title] = charts.curve(points, "bytes for each client, both directions", title)
    return found
