"""One federated round, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.errors import ClientError, WireError
from capfl.rng import stream
from capfl.roles import Agreement, door, server
from capfl.types import (
    ClientId,
    Entry,
    Evaluation,
    Exchange,
    Failure,
    Kind,
    RoundRecord,
    Score,
    ServerState,
    Update,
    Validation,
)  # fmt: skip

Reply = TypeVar("Reply", Update, Validation, Evaluation)
Read = Callable[[bytes, ClientId, int, Agreement], tuple[Reply, dict[str, int]]]


def run_round(
    state: ServerState,
    clients: Sequence[ClientId],
    agreement: Agreement,
    exchange: Exchange,
    config: FederationConfig,
    seed: int,
) -> tuple[ServerState, RoundRecord]:
    """Sample clients, send, wait, receive, aggregate. The state that comes in is not changed.

    Raises:
        ClientError: a client failed and the policy is to stop, or no client answered.
    """
    began = time.monotonic()
    round = state.round + 1
    used: list[Update] = []
    norms: dict[ClientId, float] = {}
    ranks: dict[ClientId, list[int]] = {}
    kappa: dict[ClientId, list[float]] = {}

    # server: who takes part, and what each of them is told
    chosen = sample(clients, config.fraction, seed, round)
    asking = Asking("train", round, state, agreement, exchange, config)

    def read(reply: bytes, client: ClientId, round: int, agreement: Agreement) -> tuple[Update, dict[str, int]]:
        update, parts = server.read_update(reply, client, round, agreement)
        norms[client] = door.admit(update, state, agreement)
        return update, parts

    # clients: every reply comes back, in the order of ids
    def updates() -> Iterator[Update]:
        for update in asking.replies(chosen, read):
            used.append(replace(update, adapter={}, body=b""))
            if (alive := agreement.method.alive(update.notes)) is not None:
                ranks[update.client] = algebra.living(alive, agreement.initial)
            if (own := agreement.method.kappa(update.notes)) is not None:
                kappa[update.client] = algebra.mean_by_module(own, agreement.initial)
            yield update

    # server: the new global state, and what there is to know about the round
    new_state, error = server.close_round(state, chosen, updates(), agreement)
    return new_state, RoundRecord(
        round=round,
        clients=tuple(u.client for u in used),
        losses={u.client: u.loss for u in used},
        steps={u.client: u.steps for u in used},
        failures=tuple(asking.failures),
        ledger=tuple(asking.messages),
        seconds=time.monotonic() - began,
        norms=norms,
        ranks=ranks,
        kappa=kappa,
        aggregation_error=error,
    )


def validate_round(
    state: ServerState,
    record: RoundRecord,
    clients: Sequence[ClientId],
    agreement: Agreement,
    exchange: Exchange,
    config: FederationConfig,
) -> tuple[ServerState, RoundRecord]:
    """Ask all clients how well the newest version does, after a round that is on disk: from then on they know it.

    Returns:
        The state that knows that they do, and the round's record with score, messages and failures added.

    Raises:
        ClientError: as ``run_round``.
    """
    began = time.monotonic()
    asking = Asking("validate", state.round + 1, state, agreement, exchange, config)
    heard = list(asking.replies(clients, server.read_validation))
    score = total([validation.score for validation in heard])
    knowing = {validation.client: state.round for validation in heard}
    versions = {client: version for client, version in state.versions.items() if client not in clients} | knowing
    return replace(state, versions=versions), replace(
        record,
        failures=(*record.failures, *asking.failures),
        ledger=(*record.ledger, *(replace(entry, round=record.round) for entry in asking.messages)),
        seconds=record.seconds + time.monotonic() - began,
        validation_accuracy=score.accuracy,
        validation_loss=score.loss,
    )


@dataclass
class Asking:
    """Requests of one kind to some clients. The ledger and the failures grow while replies are taken."""

    kind: Kind
    round: int
    state: ServerState
    agreement: Agreement
    exchange: Exchange
    config: FederationConfig
    ledger: list[Entry] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def messages(self) -> list[Entry]:
        """The ledger, client by client: however an engine interleaves them, it is the same."""
        return sorted(self.ledger, key=lambda entry: entry.client)

    def replies(self, clients: Sequence[ClientId], read: Read[Reply]) -> Iterator[Reply]:
        """What those say who answer, in the order of ``clients``; the policy says what a failure means.

        Raises:
            ClientError: a client failed and the policy is to stop, or no client answered.
        """
        config, answered = self.config, False
        for client, answer in self._ask(clients, read):
            for _ in range(config.retries if config.on_failure == "retry" else 0):
                if not isinstance(answer, Failure):
                    break
                self.failures.append(answer)
                ((_, answer),) = self._ask([client], read)
            if not isinstance(answer, Failure):
                answered = True
                yield answer
            elif config.on_failure == "stop":
                raise ClientError(answer.stage, self.round, client, answer.reason)
            else:
                self.failures.append(answer)
        if not answered:
            last = self.failures[-1]
            raise ClientError(last.stage, self.round, last.client, f"no client answered; {last.reason}")

    def _ask(self, clients: Sequence[ClientId], read: Read[Reply]) -> Iterator[tuple[ClientId, Reply | Failure]]:
        exchanged = self.exchange(self.kind, self.round, clients, self._request)
        for client, (sender, reply) in zip(clients, exchanged, strict=True):
            if sender != client:
                raise RuntimeError(f"the engine handed on a reply of {sender!r} where that of {client!r} was due")
            yield client, self._read(client, reply, read)

    def _request(self, client: ClientId) -> bytes:
        again = any(f.client == client for f in self.failures)
        message = server.request(self.state, client, self.agreement, again)
        self.ledger.append(Entry(self.round, client, "down", len(message.blob), message.parts))
        return message.blob

    def _read(self, client: ClientId, reply: bytes | Failure, read: Read[Reply]) -> Reply | Failure:
        if isinstance(reply, Failure):
            return reply
        try:
            said, parts = read(reply, client, self.round, self.agreement)
        except WireError as error:
            self.ledger.append(Entry(self.round, client, "up", len(reply), {"unreadable": len(reply)}))
            return Failure(client, "decode", str(error))
        self.ledger.append(Entry(self.round, client, "up", len(reply), parts))
        return said


def total(scores: Sequence[Score]) -> Score:
    """The score on the items of several clients together."""
    return Score(sum(s.correct for s in scores), sum(s.total for s in scores), sum(s.nll for s in scores))


def sample(clients: Sequence[ClientId], fraction: float, seed: int, round: int) -> list[ClientId]:
    """``sample_size`` clients, drawn without replacement and sorted by id."""
    drawn = stream(seed, "sample", round).permutation(len(clients))[: sample_size(len(clients), fraction)]
    return sorted(sorted(clients)[i] for i in drawn)


def sample_size(n_clients: int, fraction: float) -> int:
    """How many clients take part in a round: round(fraction * n), at least one."""
    return max(1, int(fraction * n_clients + 0.5))
