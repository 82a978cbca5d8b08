"""The summary of a run: a row for each client, the groups, and means over clients."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from capfl.types import EVERYBODY, ClientId, Entry, Failure, RoundRecord

MODELS = {
    "base": "base",
    "local_only": "local only",
    "shared": "shared",
    "personal": "personal",
    "centralised": "centralised",
}
"""Models that a client may be scored with: their keys in summary.json, and what people read."""

PARTS = ("header", "positions", "scales", "values", "records", "scores", "catch-up", "unreadable")


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
    ledger: tuple[Entry, ...]
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
        return [model for model in MODELS if any(self.statistics(model, metric) for metric in self.metrics)]

    def of_metric(self, metric: str) -> list[ClientRow]:
        return [row for row in self.rows if row.metric == metric]

    def statistics(self, model: str, metric: str) -> dict[str, float] | None:
        """Means of one model over the clients with one metric, or None if one of them was not scored with it.

        ``mean`` counts every client once, ``weighted_mean`` every item; ``worst`` is the lowest client, ``spread`` the
        standard deviation over clients. ``ci95`` is half the width of the 95 % interval of ``mean`` that comes from
        the choice of test items alone (normal approximation, stratified by client), not from the seed.
        """
        rows = self.of_metric(metric)
        scores: list[float] = [score for row in rows if (score := getattr(row, model)) is not None]
        if not rows or len(scores) < len(rows):
            return None
        items = [row.n_test for row in rows]
        variance = sum(score * (1 - score) / n for score, n in zip(scores, items, strict=True))
        return {
            "mean": statistics.fmean(scores),
            "weighted_mean": statistics.fmean(scores, items),
            "worst": min(scores),
            "spread": statistics.pstdev(scores),
            "ci95": 1.96 * math.sqrt(variance) / len(scores),
        }

    def level(self, name: str, metric: str) -> float | None:
        """The mean of ``chance`` or ``majority`` over the clients with one metric, or None if it is not known."""
        known = [getattr(row, name) for row in self.of_metric(metric)]
        return None if None in known or not known else statistics.fmean(known)

    def total_bytes(self, direction: str) -> int:
        return sum(e.bytes for e in self.ledger if e.direction == direction)

    def parts(self, direction: str) -> dict[str, int]:
        """Bytes of all messages in one direction by part; they sum to ``total_bytes``."""
        return total_parts([e for e in self.ledger if e.direction == direction])

    def to_json(self) -> dict[str, Any]:
        up, down = self.total_bytes("up"), self.total_bytes("down")
        return {
            "method": self.method,
            "rounds": self.rounds,
            "metrics": {metric: self._metric(metric) for metric in self.metrics},
            "groups": [asdict(group) for group in self.groups],
            "clients": [row.to_json() for row in self.rows],
            "bytes": {
                "up": up,
                "down": down,
                "total": up + down,
                "parts_up": self.parts("up"),
                "parts_down": self.parts("down"),
                "delivery": [asdict(e) for e in self.ledger if e.round > self.rounds],  # no round's record has it
            },
            "failures": self.failures,
            "evaluation_failures": [asdict(failure) for failure in self.evaluation_failures],
            "privacy": {"epsilon": self.epsilon, "delta": self.delta} if self.epsilon is not None else None,
            "cache": self.cache,
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any], ledger: Sequence[Entry]) -> Summary:
        """The summary that ``to_json`` wrote, with the messages of the rounds, which are in rounds.jsonl.

        Raises:
            KeyError, TypeError: it was written by another version of capfl.
        """
        rows = [{key: value for key, value in row.items() if key != "adapters"} for row in said["clients"]]
        privacy = said["privacy"] or {"epsilon": None, "delta": None}
        return cls(
            method=said["method"],
            rounds=said["rounds"],
            rows=tuple(ClientRow(**row) for row in rows),
            ledger=(*ledger, *(Entry(**row) for row in said["bytes"]["delivery"])),
            failures=said["failures"],
            evaluation_failures=tuple(Failure(**row) for row in said["evaluation_failures"]),
            cache=said["cache"],
            seconds=said["seconds"],
            peak_memory=said["peak_memory"],
            epsilon=privacy["epsilon"],
            delta=privacy["delta"],
            groups=tuple(GroupRow(row["name"], tuple(row["members"]), row["since"]) for row in said["groups"]),
        )

    def _metric(self, metric: str) -> dict[str, Any]:
        return {
            "clients": len(self.of_metric(metric)),
            "chance": self.level("chance", metric),
            "majority": self.level("majority", metric),
            "models": {model: self.statistics(model, metric) for model in MODELS},
        }


def total_parts(entries: Sequence[Entry]) -> dict[str, int]:
    """Bytes by part, in the order of ``PARTS``, without parts that no message has."""
    found: Counter[str] = Counter()
    for e in entries:
        found.update(e.parts)
    return {part: found[part] for part in PARTS if part in found}
