"""Requests to nodes and their replies, over Flower's Grid: own polling, own deadlines, in the order of client ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile

from flwr.app import Message
from flwr.serverapp import Grid

from capfl.engines.flower.nodes import Nodes
from capfl.engines.flower.records import MESSAGE_TYPES, Ask, Reply, pack, unpack
from capfl.errors import WireError
from capfl.types import ClientId, Failure

PAUSE = 0.2  # seconds between two questions whether replies have come
IN_MEMORY = 2**18  # bytes of a reply; a longer one waits for its turn on disk

EXPIRED, GONE = 3, 5  # error codes of Flower; these two come from the link itself, whatever node was asked
ERRORS = {
    1: "its app cannot be loaded",
    2: "its app raised an error",
    GONE: "it has gone",
    8: "the process that was to answer has ended",
}


@dataclass(frozen=True)
class Patience:
    """How long the server waits, in seconds."""

    answer: float  # for a reply, from when the request was sent
    node: float  # for the node of a client that has none, from when the client was to be asked


@dataclass
class Delivery:
    """One request to each of some clients. All are sent at once; replies are handed on in the order of the clients.

    A reply is known by the message that it answers. One that comes too late answers a message that nobody asks for.
    """

    grid: Grid
    nodes: Nodes
    patience: Patience
    ask: Callable[[ClientId], Ask]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    _waiting: list[ClientId] = field(default_factory=list, init=False)  # for a node
    _sent: dict[str, tuple[ClientId, float]] = field(default_factory=dict, init=False)  # message -> whose, until when
    _held: dict[ClientId, SpooledTemporaryFile[bytes] | Failure] = field(default_factory=dict, init=False)

    def replies(self, clients: Sequence[ClientId]) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """Ask the clients. Whoever does not answer is a Failure, of stage ``absent``, ``deadline``, ``node`` or own."""
        self._waiting, until = list(clients), self.clock() + self.patience.node
        try:
            for client in clients:
                while client not in self._held:
                    self.nodes.look()
                    self._send()
                    self._receive()
                    self._give_up(until)
                    if client not in self._held:
                        self.sleep(PAUSE)
                yield client, _taken(self._held.pop(client))
        finally:  # nobody takes the rest
            for answer in self._held.values():
                if not isinstance(answer, Failure):
                    answer.close()

    def _send(self) -> None:
        for client in list(self._waiting):
            node = self.nodes.node(client)
            if node is None:
                continue
            self._waiting.remove(client)
            ask = self.ask(client)
            message = Message(
                pack(ask), dst_node_id=node, message_type=MESSAGE_TYPES[ask.kind], group_id=str(ask.round),
                ttl=self.patience.answer,
            )  # fmt: skip
            (id,) = self.grid.push_messages([message])
            if id is None:
                self._fail(client, "node", "the link did not take the message")
            else:
                self._sent[id] = client, self.clock() + self.patience.answer

    def _receive(self) -> None:
        if not self._sent:
            return
        for message in self.grid.pull_messages(list(self._sent)):
            client, _ = self._sent.pop(message.metadata.reply_to_message_id)
            if message.has_error():
                self._fail_by(client, message.error.code, message.error.reason)
                continue
            try:
                reply = unpack(Reply, message.content)
            except WireError as error:
                self._fail(client, "node", str(error))
                continue
            if reply.stage:
                self._fail(client, reply.stage, reply.reason)
            elif reply.client != client:
                self.nodes.forget(client)
                self._fail(client, "node", f"its node answers as {reply.client!r}")
            else:
                self._held[client] = file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed when its turn comes
                file.write(reply.blob)

    def _give_up(self, until: float) -> None:
        now = self.clock()
        for id, (client, due) in list(self._sent.items()):
            if now > due:
                del self._sent[id]
                self._fail_by(client, EXPIRED, "")
        if now > until:
            for client in self._waiting:
                self._fail(client, "absent", f"{self.nodes.absent(client)}; waited {self.patience.node:.0f} s")
            self._waiting.clear()

    def _fail_by(self, client: ClientId, code: int, reason: str) -> None:
        if code == EXPIRED:
            self._fail(client, "deadline", f"no answer within {self.patience.answer:.0f} s")
        else:
            if code == GONE:
                self.nodes.forget(client)
            what = ERRORS.get(code, f"Flower's error {code}")
            self._fail(client, "node", f"{what}: {reason}" if reason else what)

    def _fail(self, client: ClientId, stage: str, reason: str) -> None:
        self._held[client] = Failure(client, stage, reason)


def _taken(answer: SpooledTemporaryFile[bytes] | Failure) -> bytes | Failure:
    if isinstance(answer, Failure):
        return answer
    with answer as file:
        file.seek(0)
        return file.read()
