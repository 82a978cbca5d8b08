"""Which node is which client. Nodes come and go; each is asked, when it comes, whose it is."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from capfl.engines.flower.records import MESSAGE_TYPES, Ask, Reply, pack, unpack
from capfl.errors import WireError
from capfl.types import ClientId

LOOK_EVERY = 2.0  # seconds
HELLO_WITHIN = 60.0  # seconds; a node that is busy answers later, and is asked again
ASKED_AGAIN = 1.5 * HELLO_WITHIN  # seconds without a word, not even that the message has expired


@dataclass(frozen=True)
class Refused:
    """A node that is not let into the run."""

    client: ClientId
    reason: str
    rival: int | None = None  # the node that has the client's place


class Nodes:
    """The nodes of a run.

    Args:
        run: the run's own id.
        clients: whom the run knows.
        note: is told of every node that joins, leaves or is refused: what happened, and its particulars.
    """

    def __init__(
        self,
        grid: Grid,
        run: str,
        clients: Sequence[ClientId],
        note: Callable[[str, dict[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grid, self._run, self._clients, self._note, self._clock = grid, run, frozenset(clients), note, clock
        self._of: dict[ClientId, int] = {}
        self._asked: dict[int, tuple[str, float]] = {}  # node -> id of the message that asks it, and until when
        self._refused: dict[int, Refused] = {}
        self._names: dict[int, str] = {}  # under which the link knows the node's key; without keys, empty
        self._looked = -LOOK_EVERY

    def node(self, client: ClientId) -> int | None:
        """The node that speaks for a client, if there is one."""
        return self._of.get(client)

    def absent(self, client: ClientId) -> str:
        """Why no node speaks for a client."""
        reasons = [refused.reason for refused in self._refused.values() if refused.client == client]
        return "; ".join(reasons) or "no node of that name is connected"

    def forget(self, client: ClientId) -> None:
        """Take nothing for granted about a client's node: look for it at once, and ask it whose it is."""
        if (node := self._of.pop(client, None)) is not None:
            self._note("left", {"client": client, "node": str(node)})
        self._looked = -LOOK_EVERY

    def look(self) -> None:
        """See who has come and who has gone, every ``LOOK_EVERY`` seconds; ask those who came."""
        if self._clock() - self._looked < LOOK_EVERY:
            return
        self._looked = self._clock()
        self._names = {node.node_id: node.name for node in self._grid.get_nodes()}
        for client, node in list(self._of.items()):
            if node not in self._names:
                del self._of[client]
                self._note("left", {"client": client, "node": str(node)})
        for node, refused in list(self._refused.items()):
            if node not in self._names or (refused.rival is not None and refused.client not in self._of):
                del self._refused[node]  # the place is free now
        settled = {*self._of.values(), *self._refused}
        # an answer that was on its way when the link died never comes, and no word of it either
        self._asked = {
            node: (id, due) for node, (id, due) in self._asked.items() if node in self._names and self._looked < due
        }
        for node in sorted(self._names.keys() - settled - self._asked.keys()):
            self._ask(node)
        if self._asked:
            for message in self._grid.pull_messages([id for id, _ in self._asked.values()]):
                self._hear(message)

    def _ask(self, node: int) -> None:
        content = pack(Ask(self._run, "hello"))
        hello = Message(content, dst_node_id=node, message_type=MESSAGE_TYPES["hello"], ttl=HELLO_WITHIN)
        (id,) = self._grid.push_messages([hello])
        if id is not None:
            self._asked[node] = id, self._clock() + ASKED_AGAIN

    def _hear(self, message: Message) -> None:
        (node,) = [node for node, (id, _) in self._asked.items() if id == message.metadata.reply_to_message_id]
        del self._asked[node]
        if message.has_error():  # it has gone, or was busy for too long: if it is here, it is asked again
            return
        try:
            reply = unpack(Reply, message.content)
            said = json.loads(reply.blob) if reply.blob else {}
        except (WireError, ValueError) as error:
            reply, said = Reply("", "hello", str(error)), {}
        reason = self._objection(node, reply, said)
        about = {"client": reply.client, "node": str(node), **said}
        if reason:
            self._refused[node] = Refused(reply.client, reason, self._of.get(reply.client))
            self._note("refused", {**about, "reason": reason})
        else:
            self._of[reply.client] = node
            self._note("joined", about)

    def _objection(self, node: int, reply: Reply, said: dict[str, Any]) -> str:
        """Why a node is not let in, or nothing."""
        client, name, here = reply.client, self._names[node], importlib.metadata.version("capfl")
        if reply.stage:
            return f"node {node} cannot take part: {reply.stage}: {reply.reason}"
        if client not in self._clients:
            return f"node {node} says that it is {client!r}, whom the run does not know; {_known(self._clients)}"
        if name and name != client:
            return f"node {node} says that it is {client!r}, but its key is that of {name!r}"
        if client in self._of:
            return f"node {node} says that it is {client!r}, and so does node {self._of[client]}, which came before it"
        if said.get("capfl") != here:
            return f"node {node} of {client!r} has capfl {said.get('capfl')}; the server has {here}"
        return ""


def _known(clients: frozenset[ClientId]) -> str:
    some = sorted(clients)[:10]
    return f"it knows {', '.join(some)}" + (f" and {len(clients) - 10} more" if len(clients) > 10 else "")
