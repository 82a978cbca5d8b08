"""The server's exchange with clients that are at nodes, over Flower's Grid: own polling, own deadlines.

Nodes come and go, and each is the client whose key it has. Their replies are handed on in the order of the clients, and
nothing that a node replies ends the run: what cannot be read is a failure of that node's client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile

from flwr.app import Message
from flwr.serverapp import Grid

from capfl.engines.flower.messages import Request, pack, read_reply
from capfl.errors import WireError, public
from capfl.types import ClientId, Failure

PAUSE = 0.2  # seconds between two questions whether replies have come
LOOK_EVERY = 2.0  # seconds between two looks at which nodes there are
IN_MEMORY = 2**18  # bytes of a reply; a longer one waits for its turn on disk

EXPIRED, GONE = 3, 5  # error codes of Flower; these two come from Flower's own server, whatever node was asked
ERRORS = {
    GONE: "it has gone",
    8: "the process that was to answer has ended",
}


@dataclass(frozen=True)
class Patience:
    """How long the server waits, in seconds."""

    answer: float  # for a reply, from when the request was sent
    node: float  # for the node of a client that has none, from when the client was to be asked


@dataclass
class Nodes:
    """The node of each client: the one whose key the server has under the client's name.

    Args:
        note: is told of every node that joins or leaves: which of the two, the client and the node's number.
    """

    grid: Grid
    clients: Sequence[ClientId]
    note: Callable[[str, ClientId, int], None]
    clock: Callable[[], float] = time.monotonic

    of: dict[ClientId, int] = field(default_factory=dict, init=False)  # of those who are connected
    _others: list[str] = field(default_factory=list, init=False)
    _looked: float = field(default=-LOOK_EVERY, init=False)

    def why_absent(self) -> str:
        """What to say of a client that has no node."""
        others = f"; there are nodes of others: {', '.join(self._others)}" if self._others else ""
        return f"no node with its key is connected{others}"

    def forget(self, client: ClientId) -> None:
        """See at the next look whether a client's node is still there."""
        if (node := self.of.pop(client, None)) is not None:
            self.note("left", client, node)
        self._looked = -LOOK_EVERY

    def look(self) -> None:
        """See which nodes have come and gone, every ``LOOK_EVERY`` seconds."""
        if self.clock() - self._looked < LOOK_EVERY:
            return
        self._looked = self.clock()
        connected = {node.name: node.node_id for node in self.grid.get_nodes()}
        self._others = sorted(connected.keys() - set(self.clients))
        for client in self.clients:
            before, now = self.of.get(client), connected.get(client)
            if before is not None and before != now:
                del self.of[client]
                self.note("left", client, before)
            if now is not None and before != now:
                self.of[client] = now
                self.note("joined", client, now)


@dataclass
class Delivery:
    """One request to each of some clients. All are sent at once; replies are handed on in the order of the clients.

    A reply is known by the message that it answers. One that comes too late answers a message that nobody asks for.

    Args:
        request: makes the request to a client.
        longest: bytes that the body of a reply may have.
    """

    nodes: Nodes
    patience: Patience
    request: Callable[[ClientId], Request]
    longest: int
    sleep: Callable[[float], None] = time.sleep

    _waiting: list[ClientId] = field(default_factory=list, init=False)  # for a node
    _sent: dict[str, tuple[Request, float]] = field(default_factory=dict, init=False)  # message -> what, until when
    _held: dict[ClientId, SpooledTemporaryFile[bytes] | Failure] = field(default_factory=dict, init=False)

    def replies(self, clients: Sequence[ClientId]) -> Iterator[tuple[ClientId, bytes | Failure]]:
        """Ask the clients.

        Whoever does not answer is a Failure: of the stage ``absent``, ``deadline`` or ``node``; or, where the client
        says itself that it failed, of the kind of the request.
        """
        self._waiting, until = list(clients), self.nodes.clock() + self.patience.node
        try:
            for client in clients:
                while client not in self._held:
                    self.nodes.look()
                    self._send()
                    self._receive()
                    self._give_up(until)
                    if client not in self._held:
                        self.sleep(PAUSE)
                held = self._held.pop(client)
                if isinstance(held, Failure):
                    yield client, held
                else:
                    with held:
                        held.seek(0)
                        body = held.read()
                    yield client, body
        finally:  # nobody takes the rest
            for held in self._held.values():
                if not isinstance(held, Failure):
                    held.close()

    def _send(self) -> None:
        for client in list(self._waiting):
            node = self.nodes.of.get(client)
            if node is None:
                continue
            self._waiting.remove(client)
            request = self.request(client)
            message = Message(
                pack(request), dst_node_id=node, message_type="train", group_id=str(request.round),
                ttl=self.patience.answer,
            )  # fmt: skip
            (id,) = self.nodes.grid.push_messages([message])
            if id is None:
                self._fail(client, "node", "Flower's server did not take the message")
            else:
                self._sent[id] = request, self.nodes.clock() + self.patience.answer

    def _receive(self) -> None:
        for message in self.nodes.grid.pull_messages(list(self._sent)) if self._sent else []:
            request, _ = self._sent.pop(message.metadata.reply_to_message_id, (None, 0.0))
            if request is None:  # a node may write anything there
                continue
            client = request.client
            if message.has_error():
                self._fail_by_flower(client, message.error.code)
                continue
            try:
                reply = read_reply(message, self.longest)
            except WireError as error:
                self._fail(client, "node", str(error), "wire")
                continue
            if reply.client != client:
                self._fail(client, "node", f"its node was started with --client {reply.client}", "wire")
            elif reply.code:
                self._fail(client, request.kind, public(reply.code), reply.code)
            else:
                self._held[client] = file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed when its turn comes
                file.write(reply.body)

    def _give_up(self, until: float) -> None:
        now = self.nodes.clock()
        for id, (request, due) in list(self._sent.items()):
            if now > due:
                del self._sent[id]
                self._fail_by_flower(request.client, EXPIRED)
        if now > until:
            for client in self._waiting:
                self._fail(client, "absent", f"{self.nodes.why_absent()}; waited {self.patience.node:.0f} s")
            self._waiting.clear()

    def _fail_by_flower(self, client: ClientId, code: int) -> None:
        """Flower's reason is not shown: it may have text of the site's."""
        if code == EXPIRED:
            self._fail(client, "deadline", f"no answer within {self.patience.answer:.0f} s")
            return
        if code == GONE:
            self.nodes.forget(client)
        self._fail(client, "node", ERRORS.get(code, f"Flower's error {code}"))

    def _fail(self, client: ClientId, stage: str, reason: str, code: str = "network") -> None:
        self._held[client] = Failure(client, stage, reason, code)
