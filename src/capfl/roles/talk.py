"""Requests of one kind to some clients, and their replies: what was sent, what came, who failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from capfl.config.schema import FederationConfig
from capfl.errors import ClientError, WireError, printable
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
    ServerState,
    Update,
    Validation,
)  # fmt: skip
from capfl.wire.secure import Dealt, Done, Masked, Offered, Opened

Reply = TypeVar("Reply", Introduction, Update, Validation, Evaluation, Offered, Dealt, Done, Masked, Opened)
Read = Callable[[bytes, ClientId, ServerState, Agreement], tuple[Reply, dict[str, int]]]


@dataclass
class Talk:
    """Requests of one kind to some clients, and their replies. Keeps the ledger, the failures and updates' norms.

    ``state`` is the server's, which the next request is made of, and ``beside`` what secure aggregation says with it,
    by client.
    """

    kind: Kind
    state: ServerState
    agreement: Agreement
    exchange: Exchange
    config: FederationConfig
    failures: list[Failure] = field(default_factory=list)
    norms: dict[ClientId, float] = field(default_factory=dict)
    beside: Mapping[ClientId, server.Beside] = field(default_factory=dict)
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
        if self.kind in ("introduce", "keys", "shares", "open"):
            message = server.ask(self.state, client, self.agreement, self.beside.get(client))
        else:
            message = server.request(self.state, client, self.agreement, again, self.beside.get(client))
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
            if reply.client != client:
                raise WireError(f"reply of client {client!r} says that it comes from {reply.client!r}")
            if reply.round != self.round:
                raise WireError(f"reply of client {client!r} is for round {reply.round}, this is round {self.round}")
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
