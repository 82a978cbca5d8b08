"""The summary of a run: one row a client, and what the rows say together."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from capfl.types import ClientId, Entry, Failure

MODELS = ("base", "global", "personal", "local_only", "centralised")
PARTS = ("header", "positions", "scales", "values", "records", "scores", "catch-up", "unreadable")


@dataclass(frozen=True)
class ClientRow:
    """Accuracies on the client's own test items; None where a model does not exist or was not asked for."""

    id: ClientId
    n_train: int
    n_test: int
    base: float
    global_: float | None
    personal: float | None
    local_only: float | None
    centralised: float | None
    rank: float  # mean over the adapted modules
    ranks: dict[str, int]  # of every module
    chance: float | None
    majority: float | None
    bytes_up: int
    bytes_down: int

    def to_json(self) -> dict[str, Any]:
        return {key.rstrip("_"): value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Summary:
    method: str
    metric: str  # what the accuracies are: of items, or of answer tokens
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

    def accuracies(self, model: str) -> list[float] | None:
        """One accuracy a client, or None if the model was not evaluated."""
        values = [row.to_json()[model] for row in self.rows]
        return None if any(value is None for value in values) else values

    def statistics(self, model: str) -> dict[str, float] | None:
        """Client-uniform and item-weighted mean, worst client, spread (standard deviation over clients), and ci95.

        ``ci95`` is half the width of the 95 % interval of ``mean`` that comes from the choice of test items alone
        (normal approximation, stratified by client). What another seed would change is not in it.
        """
        values = self.accuracies(model)
        if values is None:
            return None
        weights = [row.n_test for row in self.rows]
        return {
            "mean": statistics.fmean(values),
            "weighted_mean": statistics.fmean(values, weights),
            "worst": min(values),
            "spread": statistics.pstdev(values),
            "ci95": 1.96 * math.sqrt(sum(v * (1 - v) / n for v, n in zip(values, weights, strict=True))) / len(values),
        }

    @property
    def chance(self) -> float | None:
        return _mean([row.chance for row in self.rows])

    @property
    def majority(self) -> float | None:
        return _mean([row.majority for row in self.rows])

    def total_bytes(self, direction: str) -> int:
        return sum(e.bytes for e in self.ledger if e.direction == direction)

    def parts(self, direction: str) -> dict[str, int]:
        """Bytes of all messages in one direction by part; they sum to ``total_bytes``."""
        return total_parts([e for e in self.ledger if e.direction == direction])

    def to_json(self) -> dict[str, Any]:
        up, down = self.total_bytes("up"), self.total_bytes("down")
        by_round: dict[int, dict[str, int]] = {}
        for e in self.ledger:  # the last round is the final evaluation
            by_round.setdefault(e.round, {"round": e.round, "up": 0, "down": 0})[e.direction] += e.bytes
        messages = {d: [e.bytes for e in self.ledger if e.direction == d] for d in ("up", "down")}
        return {
            "method": self.method,
            "metric": self.metric,
            "rounds": self.rounds,
            "chance": self.chance,
            "majority": self.majority,
            "models": {model: self.statistics(model) for model in MODELS},
            "clients": [row.to_json() for row in self.rows],
            "bytes": {
                "up": up,
                "down": down,
                "total": up + down,
                "up_per_message": statistics.fmean(messages["up"]) if messages["up"] else 0.0,
                "down_per_message": statistics.fmean(messages["down"]) if messages["down"] else 0.0,
                "parts_up": self.parts("up"),
                "parts_down": self.parts("down"),
                "by_round": list(by_round.values()),
                "delivery": [asdict(e) for e in self.ledger if e.round > self.rounds],  # no round's record has it
            },
            "failures": self.failures,
            "evaluation_failures": [asdict(failure) for failure in self.evaluation_failures],
            "privacy": {"epsilon": self.epsilon, "delta": self.delta} if self.epsilon is not None else None,
            "cache": self.cache,
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
        }


def total_parts(entries: Sequence[Entry]) -> dict[str, int]:
    """Bytes by part, in the order of ``PARTS``, without parts that no message has."""
    found: Counter[str] = Counter()
    for e in entries:
        found.update(e.parts)
    return {part: found[part] for part in PARTS if part in found}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) and known else None
