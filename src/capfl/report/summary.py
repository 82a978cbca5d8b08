"""The summary of a run: a row for each client, the groups, and means over clients. It is written as summary.json."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from capfl.errors import CheckpointError
from capfl.files import read_json
from capfl.history import History
from capfl.types import EVERYBODY, ClientId, Entry, Failure, RoundRecord

MODELS = {
    "base": "base",
    "local_only": "local only",
    "shared": "shared",
    "personal": "personal",
    "centralised": "centralised",
}
"""Models that a client may be scored with: their keys in summary.json, and what people read."""

Z95 = 1.96


@dataclass(frozen=True)
class ClientRow:
    """One client. Scores are on its own test items, between 0 and 1; None where there is no such model.

    ``metric`` says what they are the share of: "accuracy" of right items, "token accuracy" of answer tokens predicted.
    """

    id: ClientId
    n_train: int
    n_test: int
    base: float
    shared: float | None  # of the adapter that the client shares with its group
    personal: float | None
    local_only: float | None
    centralised: float | None
    rank: float  # mean over the adapted modules
    ranks: dict[str, int]  # of every module
    chance: float | None
    majority: float | None
    bytes_up: int
    bytes_down: int
    metric: str = "accuracy"
    group: str | None = None

    @property
    def adapters(self) -> dict[str, str]:
        """Where the client's adapters lie, relative to the run's folder, by the model whose score they have."""
        group = None if self.group == EVERYBODY else self.group
        places = {
            "shared": f"adapters/groups/{group}" if group else "adapters/global",
            "personal": f"adapters/clients/{self.id}",
        }
        return {model: place for model, place in places.items() if getattr(self, model) is not None}

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"adapters": self.adapters}


@dataclass(frozen=True)
class GroupRow:
    """Clients that share an adapter at the end of a run."""

    name: str
    members: tuple[ClientId, ...]
    since: int  # the round after which these clients have been its members


def group_rows(records: Sequence[RoundRecord]) -> tuple[GroupRow, ...]:
    """The groups after the last round, and since when each has had the members that it has."""
    history = [members_of(record.groups) for record in records]
    rows = []
    for name, members in sorted(history[-1].items()) if history else ():
        since = records[-1].round
        for record, groups in zip(reversed(records), reversed(history), strict=True):
            if groups.get(name) != members:
                break
            since = record.round
        rows.append(GroupRow(name, members, since))
    return tuple(rows)


def members_of(groups: Mapping[ClientId, str]) -> dict[str, tuple[ClientId, ...]]:
    """Group -> its clients, from client -> its group."""
    return {name: tuple(sorted(c for c, own in groups.items() if own == name)) for name in set(groups.values())}


@dataclass(frozen=True)
class Summary:
    """What came of a run. Means are taken over clients with one metric, never across metrics."""

    method: str
    rounds: int
    rows: tuple[ClientRow, ...]
    ledger: tuple[Entry, ...]  # every message; those of the final evaluation have the round after the last
    failures: int  # of the rounds; rounds.jsonl has them
    evaluation_failures: tuple[Failure, ...]  # of the last messages; a client that did not answer has no row
    cache: dict[str, int]  # blocks computed, blocks reused, bytes kept; empty where clients are elsewhere
    seconds: float
    peak_memory: int  # bytes; of the process, its clients too where they are in it; since it began or was resumed
    epsilon: float | None = None  # of (epsilon, delta)-differential privacy, if the run has it
    delta: float | None = None
    groups: tuple[GroupRow, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(sorted({row.metric for row in self.rows}))

    @property
    def models(self) -> list[str]:
        """Models that all clients of some metric were scored with."""
        return [model for model in MODELS if any(self.scores(model, metric) for metric in self.metrics)]

    def of_metric(self, metric: str) -> list[ClientRow]:
        return [row for row in self.rows if row.metric == metric]

    def scores(self, field: str, metric: str) -> dict[ClientId, float] | None:
        """What each client with one metric has in a field of its row: the score of a model, ``chance`` or ``majority``.

        None if there is no such client, or if one of them has nothing there.
        """
        found = {row.id: getattr(row, field) for row in self.of_metric(metric)}
        return None if None in found.values() or not found else found

    def mean(self, field: str, metric: str) -> float | None:
        """The mean of ``scores``, which counts every client once."""
        found = self.scores(field, metric)
        return statistics.fmean(found.values()) if found else None

    def statistics(self, model: str, metric: str) -> dict[str, float] | None:
        """Mean, lowest client and spread of a model over the clients with one metric, or None without ``scores``.

        ``spread`` is the standard deviation over clients. ``ci95`` is half the width of the 95 % interval of ``mean``
        that comes from the choice of test items alone (normal approximation, stratified by client), not from the seed.
        """
        found = self.scores(model, metric)
        if found is None:
            return None
        scores, rows = list(found.values()), self.of_metric(metric)
        variance = sum(score * (1 - score) / row.n_test for score, row in zip(scores, rows, strict=True))
        return {
            "mean": statistics.fmean(scores),
            "worst": min(scores),
            "spread": statistics.pstdev(scores),
            "ci95": Z95 * math.sqrt(variance) / len(scores),
        }

    def messages(self, direction: str, client: ClientId | None = None) -> list[Entry]:
        """The messages of one direction, of one client or of all."""
        return [e for e in self.ledger if e.direction == direction and client in (None, e.client)]

    def total_bytes(self, direction: str) -> int:
        return sum(e.bytes for e in self.messages(direction))

    def bytes_per_client(self, direction: str) -> float:
        return self.total_bytes(direction) / len({e.client for e in self.ledger})

    def parts(self, direction: str, client: ClientId | None = None) -> dict[str, int]:
        """Bytes of ``messages`` by part; they sum to the bytes of the messages."""
        found: Counter[str] = Counter()
        for e in self.messages(direction, client):
            found.update(e.parts)
        return dict(found)

    def to_json(self) -> dict[str, Any]:
        up, down = self.total_bytes("up"), self.total_bytes("down")
        fields = asdict(self)
        del fields["rows"], fields["ledger"]
        return fields | {
            "metrics": {metric: self._metric(metric) for metric in self.metrics},
            "clients": [row.to_json() for row in self.rows],
            "bytes": {
                "up": up,
                "down": down,
                "total": up + down,
                "parts_up": self.parts("up"),
                "parts_down": self.parts("down"),
                "delivery": [asdict(e) for e in self.ledger if e.round > self.rounds],  # no round's record has it
            },
        }

    def _metric(self, metric: str) -> dict[str, Any]:
        return {
            "clients": len(self.of_metric(metric)),
            "chance": self.mean("chance", metric),
            "majority": self.mean("majority", metric),
            "models": {model: self.statistics(model, metric) for model in MODELS},
        }


def read_summary(path: Path) -> Summary:
    """The summary of the finished run in a folder: summary.json, and the messages of the rounds from rounds.jsonl.

    Raises:
        CheckpointError: the folder is no run, the run is not finished, or its files do not agree.
    """
    file = path / "summary.json"
    if not (path / "config.toml").is_file():
        raise CheckpointError(f"{path} has no config.toml: not a run folder; give the folder that `capfl run` names")
    if not file.is_file():
        raise CheckpointError(f"{path} is not finished; go on with: capfl run --resume {path}")
    records, _ = History(path / "rounds.jsonl").read()
    said, rounds = read_json(file), [entry for record in records for entry in record.ledger]
    try:
        values = said | {"rows": said["clients"], "ledger": [*rounds, *said["bytes"]["delivery"]]}
        summary = TypeAdapter(Summary).validate_python(values)
    except (ValidationError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged, or of another version of capfl: {_first_line(error)}") from error
    for direction in ("up", "down"):
        if said["bytes"][direction] != summary.total_bytes(direction):
            raise CheckpointError(
                f"{file} says {said['bytes'][direction]} bytes {direction}, the messages in rounds.jsonl sum to "
                f"{summary.total_bytes(direction)}; write it anew with: capfl run --resume {path}"
            )
    return summary


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{error} is missing"


def clearly_worse(mine: float, alone: float, n_test: int) -> bool:
    """Lower by more than 1.96 standard errors of a difference of two accuracies on ``n_test`` items each."""
    error = math.sqrt((mine * (1 - mine) + alone * (1 - alone)) / n_test)
    return alone - mine > Z95 * error
