"""What left each site of a run and what came back, from the run's folder: every message, to the byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from capfl.checkpoint import RunFolder
from capfl.errors import CheckpointError
from capfl.report.summary import Summary, total_parts
from capfl.report.tables import MOST_ROWS, Table, size
from capfl.types import ClientId, Entry

DIRECTIONS = {"up": "left the site", "down": "came back"}


@dataclass(frozen=True)
class Ledger:
    """The messages of a run. ``delivery`` are those after the last round: the final model, and how it does."""

    rounds: int
    entries: Sequence[Entry]
    delivery: Sequence[Entry]
    finished: bool  # has the final model been delivered and evaluated?

    @property
    def clients(self) -> list[ClientId]:
        return sorted({e.client for e in (*self.entries, *self.delivery)})

    def messages(self, direction: str, client: ClientId | None = None) -> list[Entry]:
        """All of one direction, of one client or of all."""
        everything = (*self.entries, *self.delivery)
        return [e for e in everything if e.direction == direction and client in (None, e.client)]

    def parts(self, direction: str, client: ClientId | None = None) -> dict[str, int]:
        """Bytes of one direction by part; they sum to the bytes of the messages."""
        return total_parts(self.messages(direction, client))

    def per_round(self, direction: str, client: ClientId | None = None) -> float:
        """Mean bytes of the rounds that the client took part in (all clients: of all rounds), evaluation left out."""
        own = [e for e in self.entries if client in (None, e.client)]
        n_rounds = len({e.round for e in own})
        return sum(e.bytes for e in own if e.direction == direction) / n_rounds if n_rounds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "finished": self.finished,
            **self._row(None),
            "bytes": sum(e.bytes for e in (*self.entries, *self.delivery)),
            "final_delivery": sum(e.bytes for e in self.delivery if e.direction == "down"),
            "final_replies": sum(e.bytes for e in self.delivery if e.direction == "up"),
            "clients": [{"client": client, **self._row(client)} for client in self.clients],
        }

    def _row(self, client: ClientId | None) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for direction in DIRECTIONS:
            messages = self.messages(direction, client)
            row[f"messages_{direction}"] = len(messages)
            row[f"bytes_{direction}"] = sum(e.bytes for e in messages)
            row[f"mean_{direction}_per_round"] = round(self.per_round(direction, client), 1)
            row[f"parts_{direction}"] = self.parts(direction, client)
        return row


def read_ledger(path: Path) -> Ledger:
    """The ledger of the run in a folder, finished or not.

    Raises:
        CheckpointError: the folder is no run or has no rounds yet, or its files do not agree.
    """
    folder = RunFolder(path)
    if not (path / "config.toml").is_file():
        raise CheckpointError(f"{path} has no config.toml: not a run folder; give the folder that `capfl run` names")
    try:
        records = folder.rounds()
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path / 'rounds.jsonl'} was written by another version of capfl ({error}); read it with that one"
        ) from error
    if not records:
        raise CheckpointError(f"{path} has no rounds yet; go on with: capfl run --resume {path}")
    entries = [e for record in records for e in record.ledger]
    if not (path / "summary.json").is_file():
        return Ledger(len(records), entries, (), finished=False)
    said = folder.read_json("summary.json")["bytes"]
    if "delivery" not in said:
        raise CheckpointError(
            f"{path / 'summary.json'} does not list the final delivery; write it anew with: capfl run --resume {path}"
        )
    ledger = Ledger(len(records), entries, [Entry(**row) for row in said["delivery"]], finished=True)
    counted = {d: sum(e.bytes for e in ledger.messages(d)) for d in DIRECTIONS}
    if any(said[d] != counted[d] for d in DIRECTIONS):
        raise CheckpointError(
            f"{path}: summary.json says {said['up']} bytes up and {said['down']} down, the messages sum to "
            f"{counted['up']} and {counted['down']}; write it anew with: capfl run --resume {path}"
        )
    return ledger


def read_summary(path: Path) -> Summary:
    """The summary of the finished run in a folder.

    Raises:
        CheckpointError: the run is not finished, or its files do not agree.
    """
    ledger = read_ledger(path)
    if not ledger.finished:
        raise CheckpointError(f"{path} is not finished; go on with: capfl run --resume {path}")
    try:
        return Summary.from_json(RunFolder(path).read_json("summary.json"), ledger.entries)
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path / 'summary.json'} was written by another version of capfl ({error}); read it with that one"
        ) from error


def ledger_tables(ledger: Ledger) -> Group:
    """A line a client and direction: number of messages, bytes, bytes of a round, and parts."""
    whole = "final evaluation included" if ledger.finished else "not finished: without the final evaluation"
    title = Text(f"{ledger.rounds} rounds, {whole}; a round: the mean of those that a client took part in")
    return Group(title, Text(), ledger_table(ledger, "up"), Text(), ledger_table(ledger, "down"))


def ledger_table(ledger: Ledger, direction: str) -> Table:
    """The messages of one direction."""
    parts = [part for part, n in ledger.parts(direction).items() if n]

    def line(name: str, client: ClientId | None) -> list[str]:
        messages, own = ledger.messages(direction, client), ledger.parts(direction, client)
        sizes = [sum(e.bytes for e in messages), ledger.per_round(direction, client), *(own.get(p, 0) for p in parts)]
        return [name, str(len(messages)), *map(size, sizes)]

    heads = [DIRECTIONS[direction], "count", "bytes", "a round", *parts]
    rows = [line(client, client) for client in ledger.clients[:MOST_ROWS]]
    if len(ledger.clients) > MOST_ROWS:
        rows.append([f"and {len(ledger.clients) - MOST_ROWS} more", *[""] * (len(heads) - 1)])
    return Table(heads, rows, [line("all", None)])
