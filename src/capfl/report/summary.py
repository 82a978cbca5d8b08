"""The summary of a run: a row for each client, the groups, and means over clients. It is written as summary.json."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from capfl import metrics
from capfl.errors import CheckpointError
from capfl.files import read_json
from capfl.history import History
from capfl.types import EVERYBODY, ClientId, Entry, Failure, RoundRecord, Tally

MODELS = {
    "base": "base",
    "local_only": "local only",
    "shared": "shared",
    "personal": "personal",
    "centralised": "centralised",
}
"""Models that a client may be scored with: their keys in summary.json, and what people read."""

TOGETHER = "all clients"
"""What the row of all clients is called, where none says its own scores; those of one task have its name behind it."""

Z95 = 1.96


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One client, and how the models that it has do on its own test items; or all clients together (``TOGETHER``).

    Attributes:
        metrics: that its items are measured by, the most important first.
        scores: by model (see ``MODELS``) and metric.
        rank: mean over the adapted modules.
        ranks: of every module; of all clients together the mean.
        chance: accuracy of blind guessing; None: its items are completions.
        majority: accuracy of always giving the most frequent answer of the training items; None: as ``chance``.
    """

    id: ClientId
    n_train: int
    n_test: int
    metrics: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Tally]]
    rank: float
    ranks: Mapping[str, float]
    chance: float | None
    majority: float | None
    bytes_up: int
    bytes_down: int
    group: str | None = None

    @property
    def metric(self) -> str:
        """The first of its metrics, by which it is better off or worse."""
        return self.metrics[0]

    def value(self, model: str, metric: str | None = None) -> float | None:
        """What a model comes to by a metric, by default the first; None if there is no such model or metric."""
        name = metric or self.metric
        tally = self.scores.get(model, {}).get(name)
        return None if tally is None else metrics.metric(name).value(tally)

    def count(self, model: str, metric: str) -> int:
        """How many independent values a share is the mean of: at most one a test item, also where tokens count."""
        return min(self.scores[model][metric].count, self.n_test)

    @property
    def base(self) -> float | None:
        """The base's value, by the first metric, as the four below."""
        return self.value("base")

    @property
    def shared(self) -> float | None:
        """The value of the adapter that the client shares with its group."""
        return self.value("shared")

    @property
    def personal(self) -> float | None:
        return self.value("personal")

    @property
    def local_only(self) -> float | None:
        return self.value("local_only")

    @property
    def centralised(self) -> float | None:
        return self.value("centralised")

    @property
    def adapters(self) -> dict[str, str]:
        """Where the client's adapters lie, relative to the run's folder, by the model whose score they have."""
        if self.id.startswith(TOGETHER):
            return {}
        group = None if self.group == EVERYBODY else self.group
        places = {
            "shared": f"adapters/groups/{group}" if group else "adapters/global",
            "personal": f"adapters/clients/{self.id}",
        }
        return {model: place for model, place in places.items() if model in self.scores}

    def to_json(self) -> dict[str, Any]:
        """``scores`` has sum, count and value of each metric; what stands under a model's name is the first's value."""
        scores = {
            model: {
                name: {"sum": tally.sum, "count": tally.count, "value": self.value(model, name)}
                for name, tally in own.items()
            }
            for model, own in self.scores.items()
        }
        values = {model: self.value(model) for model in MODELS}
        return asdict(self) | {"metric": self.metric, "scores": scores, **values, "adapters": self.adapters}


@dataclass(frozen=True)
class GroupRow:
    """Clients that share an adapter at the end of a run."""

    name: str
    members: tuple[ClientId, ...]
    since: int  # the round after which these clients have been its members


def group_rows(records: Sequence[RoundRecord]) -> tuple[GroupRow, ...]:
    """The groups after the last round, and since when each has had the members that it has."""
    last = members_of(records[-1].groups) if records else {}
    since = dict.fromkeys(last, records[-1].round if records else 0)
    lasting = set(last)  # groups that have had these members in all rounds from here on
    groups: Mapping[ClientId, str] = records[-1].groups if records else {}
    for record in reversed(records):
        if record.groups != groups:
            before = members_of(record.groups)
            lasting = {name for name in lasting if before.get(name) == last[name]}
            groups = record.groups
        since |= dict.fromkeys(lasting, record.round)
    return tuple(GroupRow(name, last[name], since[name]) for name in sorted(last))


def members_of(groups: Mapping[ClientId, str]) -> dict[str, tuple[ClientId, ...]]:
    """Group -> its clients, from client -> its group."""
    found: dict[str, list[ClientId]] = {}
    for client in sorted(groups):
        found.setdefault(groups[client], []).append(client)
    return {name: tuple(members) for name, members in found.items()}


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
    peak_memory: int  # bytes; of the process or its largest worker; clients elsewhere are not in it; since the start
    epsilon: float | None = None  # of (epsilon, delta)-differential privacy, if the run has it
    delta: float | None = None
    protects: str = "clients"  # whose part epsilon is about, or "items"
    groups: tuple[GroupRow, ...] = ()
    stopped: str | None = None  # why it ended before its last round

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of all clients, those of one task together, the most important first."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.metrics))

    @property
    def leading(self) -> tuple[str, ...]:
        """The first metric of each kind of task, sorted."""
        return tuple(sorted({row.metric for row in self.rows}))

    @property
    def models(self) -> list[str]:
        """Models that all clients of some metric were scored with."""
        return [model for model in MODELS if any(self.scores(model, metric) for metric in self.leading)]

    @property
    def n_clients(self) -> int:
        """Clients that messages went to."""
        return len({e.client for e in self.ledger})

    def of_metric(self, metric: str) -> list[ClientRow]:
        return [row for row in self.rows if metric in row.metrics]

    def scores(self, model: str, metric: str) -> dict[ClientId, float] | None:
        """The value of a model by a metric, of each client that the metric measures.

        None if there is no such client, or if one of them has no such model.
        """
        found = {row.id: row.value(model, metric) for row in self.of_metric(metric)}
        complete = {client: value for client, value in found.items() if value is not None}
        return complete if complete and len(complete) == len(found) else None

    def mean(self, field: str, metric: str) -> float | None:
        """The mean over clients, each counted once, of a number of their rows; None as ``scores``.

        Args:
            field: a model, or ``chance``, ``majority`` or ``rank``. Chance and majority are accuracies.
        """
        if field in MODELS:
            found: Any = self.scores(field, metric)
            return statistics.fmean(found.values()) if found else None
        values = [getattr(row, field) for row in self.of_metric(metric)]
        if None in values or not values or (field != "rank" and metric != "accuracy"):
            return None
        return statistics.fmean(values)

    def statistics(self, model: str, metric: str) -> dict[str, float] | None:
        """Mean, worst client and spread of a model over the clients with one metric, or None without ``scores``.

        ``spread`` is the standard deviation over clients. ``ci95`` is half the width of the 95 % interval of ``mean``
        that comes from the choice of test items alone (``variance_of``, stratified by client), not from the seed.
        Values between 0 and 1 vary at most as zeros and ones do, so it is rather too wide. A perplexity has none.
        """
        found, kind = self.scores(model, metric), metrics.metric(metric)
        if found is None:
            return None
        values = list(found.values())
        said = {
            "mean": statistics.fmean(values),
            "worst": kind.worst(values),
            "spread": statistics.pstdev(values),
        }
        if kind.is_share:
            rows = zip(values, self.of_metric(metric), strict=True)
            variance = sum(variance_of(value, row.count(model, metric)) for value, row in rows)
            said["ci95"] = Z95 * math.sqrt(variance) / len(values)
        return said

    def messages(self, direction: str, client: ClientId | None = None) -> list[Entry]:
        """The messages of one direction, of one client or of all."""
        return [e for e in self.ledger if e.direction == direction and client in (None, e.client)]

    def total_bytes(self, direction: str) -> int:
        return sum(e.bytes for e in self.messages(direction))

    def bytes_per_client(self, direction: str) -> float:
        return self.total_bytes(direction) / self.n_clients

    def parts(self, direction: str, client: ClientId | None = None) -> dict[str, int]:
        """Bytes of ``messages`` by part; they sum to the bytes of the messages."""
        found: Counter[str] = Counter()
        for e in self.messages(direction, client):
            found.update(e.parts)
        return dict(found)

    def to_json(self, listed: Callable[[Iterator[dict[str, Any]]], Any] = list) -> dict[str, Any]:
        """As it stands in summary.json. ``listed``: what to make of clients and of messages, which may be very many."""
        up, down = self.total_bytes("up"), self.total_bytes("down")
        fields = asdict(replace(self, rows=(), ledger=()))
        del fields["rows"], fields["ledger"]
        return fields | {
            "metrics": {metric: self._metric(metric) for metric in self.metrics},
            "clients": listed(row.to_json() for row in self.rows),
            "bytes": {
                "up": up,
                "down": down,
                "total": up + down,
                "parts_up": self.parts("up"),
                "parts_down": self.parts("down"),
                "delivery": listed(asdict(e) for e in self.ledger if e.round > self.rounds),  # in no round's record
            },
        }

    def _metric(self, metric: str) -> dict[str, Any]:
        return {
            "clients": len(self.of_metric(metric)),
            "better": "more" if metrics.metric(metric).is_share else "less",
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
        watched = f"; or look at it while it goes on: capfl report {path} --watch"
        raise CheckpointError(f"{path} is not finished; continue with: capfl run --resume {path}{watched}")
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


def variance_of(share: float, n: int) -> float:
    """The variance of a share of ``n`` items, with one more that is right and one more that is wrong.

    So a client with all items right, or none, does not seem to be known for certain. Agresti and Caffo, Simple and
    effective confidence intervals for proportions and differences of proportions, The American Statistician, 2000.
    """
    nearer = (n * share + 1) / (n + 2)
    return nearer * (1 - nearer) / (n + 2)


@dataclass(frozen=True)
class Pair:
    """A client's model beside training alone, by one metric, and how many values each of the two is the mean of."""

    mine: float
    alone: float
    metric: str
    counts: tuple[int, int]

    @property
    def gain(self) -> float:
        """By how much the client is better off; negative if it is worse off."""
        return metrics.metric(self.metric).gain(self.mine, self.alone)

    @property
    def is_clearly_worse(self) -> bool | None:
        """Worse by more than 1.96 standard errors of a difference of two shares; None: perplexities have no such."""
        if not metrics.metric(self.metric).is_share:
            return None
        return -self.gain > Z95 * math.sqrt(self.variance)

    @property
    def variance(self) -> float:
        """The variance of the difference of two shares, taken for independent: so it is rather too large."""
        return variance_of(self.mine, self.counts[0]) + variance_of(self.alone, self.counts[1])


def pair(row: ClientRow, model: str, metric: str, other: ClientRow, alone: str) -> Pair | None:
    """A model of a client beside one of the same client's in another run or this; None: one of them is not there."""
    mine, theirs = row.value(model, metric), other.value(alone, metric)
    if mine is None or theirs is None:
        return None
    return Pair(mine, theirs, metric, (row.count(model, metric), other.count(alone, metric)))
