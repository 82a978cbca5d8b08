"""One federated round, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.errors import ClientError, WireError, printable
from capfl.metrics import metric
from capfl.rng import stream
from capfl.roles import door, server
from capfl.roles.agreement import Agreement
from capfl.types import (
    ClientId,
    Entry,
    Evaluation,
    Exchange,
    Failure,
    Introduction,
    Kind,
    RoundRecord,
    Score,
    ServerState,
    Tally,
    Update,
    Validation,
)  # fmt: skip

Reply = TypeVar("Reply", Introduction, Update, Validation, Evaluation)
Read = Callable[[bytes, ClientId, ServerState, Agreement], tuple[Reply, dict[str, int]]]


def run_round(
    state: ServerState,
    clients: Sequence[ClientId],
    agreement: Agreement,
    exchange: Exchange,
    config: FederationConfig,
    seed: int,
    trained: Callable[[ClientId, float], None] = lambda client, loss: None,
) -> tuple[ServerState, RoundRecord]:
    """Sample clients, send, wait, receive, aggregate. The state that comes in is not changed.

    Args:
        trained: is told of every client's mean training loss, as its update comes.

    Raises:
        ClientError: a client failed and the policy is to stop, or no client answered.
    """
    began = time.monotonic()
    method, ranks = agreement.method, agreement.method.ranks
    chosen = sample(clients, config.fraction, seed, state.round + 1)
    state, met = introduce(state, method.grouping.unknown(state, chosen), agreement, exchange, config)
    unknown = method.grouping.unknown(state, chosen)
    chosen = [client for client in chosen if client not in unknown]
    if not chosen:
        met.require_an_answer()
    talk = Talk("train", state, agreement, exchange, config)
    aggregation = server.Aggregation(state, agreement)
    record = RoundRecord(state.round + 1, clients=(), losses={}, steps={}, failures=(), ledger=(), seconds=0.0)

    for turn in method.order.of_round(chosen, state.group_of, seed, record.round):
        for client, answer in exchange("train", record.round, turn, talk.request):
            update = talk.read(client, answer, server.read_update)
            if update is None:
                continue
            aggregation.add(update)
            trained(client, update.loss)
            record.losses[client], record.steps[client] = update.loss, update.steps
            kept = ranks.of_client(state, client) if update.ranks is None else ranks.in_own_model(update.ranks)
            if kept is not None:
                record.ranks[client] = algebra.living(kept, agreement.initial)
            if (kappa := ranks.kappa(update.ranks)) is not None:
                record.kappa[client] = algebra.mean_by_module(kappa, agreement.initial)
        talk.require_all(turn)
        aggregation.end_turn(asked=turn)
        talk.state = aggregation.state

    talk.require_an_answer()
    new_state = aggregation.value()
    return new_state, replace(
        record,
        clients=tuple(sorted(record.losses)),
        failures=(*met.failures, *talk.failures),
        ledger=(*met.ledger, *talk.ledger),
        groups=new_state.group_of,
        capped=aggregation.capped,
        norms=talk.norms,
        seconds=time.monotonic() - began,
    )


def introduce(
    state: ServerState,
    clients: Sequence[ClientId],
    agreement: Agreement,
    exchange: Exchange,
    config: FederationConfig,
) -> tuple[ServerState, Talk]:
    """Ask clients what their data are like. Returns the state with the groups that follow, and the messages.

    Raises:
        ClientError: as ``run_round``.
    """
    talk = Talk("introduce", state, agreement, exchange, config)
    if not clients:
        return state, talk
    said = {reply.client: reply for reply in talk.replies(clients, server.read_introduction)}
    return server.introduced(state, said, agreement), talk


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
    talk = Talk("validate", state, agreement, exchange, config)
    scores = {said.client: said.score for said in talk.ask(clients, server.read_validation)}
    heard = {client: state.round for client in scores if client in state.visits}
    state = server.forgotten(state, clients)
    versions = {**state.versions, **dict.fromkeys(scores, state.version)}
    state = replace(state, versions=versions, heard={**state.heard, **heard})
    return state, replace(
        record,
        failures=(*record.failures, *talk.failures),
        ledger=(*record.ledger, *(replace(entry, round=record.round) for entry in talk.ledger)),
        seconds=record.seconds + time.monotonic() - began,
        **validation_of(list(scores.values())),
    )


@dataclass
class Talk:
    """Requests of one kind to some clients, and their replies. Keeps the ledger, the failures and updates' norms.

    ``state`` is the server's, which the next request is made of.
    """

    kind: Kind
    state: ServerState
    agreement: Agreement
    exchange: Exchange
    config: FederationConfig
    failures: list[Failure] = field(default_factory=list)
    norms: dict[ClientId, float] = field(default_factory=dict)
    _entries: list[Entry] = field(default_factory=list)
    _parts: dict[str, Mapping[str, int]] = field(default_factory=dict)  # of the last message in each direction
    _read: list[ClientId] = field(default_factory=list)
    _answered: bool = False

    @property
    def round(self) -> int:
        """The round that the messages are of."""
        return self.state.round + 1

    @property
    def ledger(self) -> list[Entry]:
        """The messages, client by client: however an engine interleaves them, it is the same."""
        return sorted(self._entries, key=lambda entry: entry.client)

    def request(self, client: ClientId) -> bytes:
        """What a client is sent. One that has failed before gets all that it may need."""
        again = any(failure.client == client for failure in self.failures)
        if self.kind == "introduce":
            message = server.ask_for_introduction(self.state, client, self.agreement)
        else:
            message = server.request(self.state, client, self.agreement, again)
        self._enter(client, "down", len(message.blob), message.parts)
        return message.blob

    def read(self, client: ClientId, answer: bytes | Failure, read: Read[Reply]) -> Reply | None:
        """What a client says; None if it has failed for good in this round.

        A client that fails is asked again if the policy says so, once; and once in any case if it has lost the version
        that it was thought to know.

        Raises:
            ClientError: it failed and the policy is to stop.
        """
        self._read.append(client)
        tries = 1 if self.config.on_failure == "retry" else 0
        reply = self._decoded(client, answer, read)
        while isinstance(reply, Failure):
            lost = reply.code == "version" and not any(failure.client == client for failure in self.failures)
            if not lost and not tries and self.config.on_failure == "stop":
                raise ClientError(reply.stage, self.round, client, reply.reason)
            self.failures.append(reply)
            if not lost and not tries:
                return None
            tries -= not lost
            ((_, answer),) = self.exchange(self.kind, self.round, [client], self.request)
            reply = self._decoded(client, answer, read)
        self._answered = True
        return reply

    def ask(
        self, clients: Sequence[ClientId], read: Read[Reply], answered: Callable[[ClientId], None] = lambda client: None
    ) -> list[Reply]:
        """What those say who answer, in the order of ``clients``. Raises ClientError as ``run_round``.

        Args:
            answered: is told of each client that has answered or failed.
        """
        replies = self.replies(clients, read, answered)
        self.require_an_answer()
        return replies

    def replies(
        self, clients: Sequence[ClientId], read: Read[Reply], answered: Callable[[ClientId], None] = lambda client: None
    ) -> list[Reply]:
        """As ``ask``, and nobody need answer."""
        replies = []
        for client, answer in self.exchange(self.kind, self.round, clients, self.request):
            replies.append(self.read(client, answer, read))
            answered(client)
        self.require_all(clients)
        return [reply for reply in replies if reply is not None]

    def require_all(self, clients: Sequence[ClientId]) -> None:
        """After the last reply of ``clients``.

        Raises:
            RuntimeError: the engine has not handed on one reply, or failure, for each of them in their order.
        """
        if self._read != list(clients):
            raise RuntimeError(f"the engine was to ask {', '.join(clients)}, and gave replies of {self._read}")
        self._read = []

    def require_an_answer(self) -> None:
        """Raises ClientError: nobody has answered."""
        if not self._answered:
            last = self.failures[-1]
            raise ClientError(last.stage, self.round, last.client, f"no client answered; {last.reason}")

    def _decoded(self, client: ClientId, answer: bytes | Failure, read: Read[Reply]) -> Reply | Failure:
        if isinstance(answer, Failure):
            return answer
        try:
            reply, parts = read(answer, client, self.state, self.agreement)
            if isinstance(reply, Introduction):
                door.admit_introduction(reply, self.agreement)
            if isinstance(reply, Update):
                self.norms[client] = door.admit(reply, self.state, self.agreement)
        except WireError as error:
            self._enter(client, "up", len(answer), {"unreadable": len(answer)})
            return Failure(client, "decode", printable(str(error)), error.code)
        self._enter(client, "up", len(answer), parts)
        return reply

    def _enter(self, client: ClientId, direction: Literal["up", "down"], n: int, parts: Mapping[str, int]) -> None:
        if self._parts.get(direction) != parts:  # those of thousands of like messages are in memory once
            self._parts[direction] = parts
        self._entries.append(Entry(self.round, client, direction, n, self._parts[direction]))


def validation_of(scores: Sequence[Score]) -> dict[str, Any]:
    """What a round's record says of its validation, from the clients' scores.

    Each metric is taken over the items of all clients that it measures. The losses of two kinds of task, an item's and
    a token's, have no mean.
    """
    names = dict.fromkeys(name for score in scores for name in score.metrics)
    found = {name: metric(name).value(total([s.metrics[name] for s in scores if name in s.metrics])) for name in names}
    kinds = {tuple(score.metrics) for score in scores}
    loss = total([score.loss for score in scores]).mean if len(kinds) == 1 else None
    return {"validation": found, "validation_loss": loss}


def total(tallies: Sequence[Tally]) -> Tally:
    """Several clients' together."""
    return Tally(sum(own.sum for own in tallies), sum(own.count for own in tallies))


def sample(clients: Sequence[ClientId], fraction: float, seed: int, round: int) -> list[ClientId]:
    """``sample_size`` clients, drawn without replacement and sorted by id."""
    drawn = stream(seed, "sample", round).permutation(len(clients))[: sample_size(len(clients), fraction)]
    return sorted(sorted(clients)[i] for i in drawn)


def sample_size(n_clients: int, fraction: float) -> int:
    """How many clients take part in a round: round(fraction * n), at least one."""
    return max(1, int(fraction * n_clients + 0.5))
