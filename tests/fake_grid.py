"""A Grid without a network, on a clock that moves when somebody sleeps. Messages go through Flower's encoding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from capfl.engines.flower.messages import Reply, Request, pack, read_request

TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # which it takes to make messages

Answer = Reply | Error | RecordDict
Behaviour = Callable[[Request], tuple[float, Answer] | None]
"""What a node does with a request: after how many seconds it answers, and what. None: never."""


def parts(message: Message) -> dict[str, bytes]:
    """The objects that Flower moves in place of a message, by their names."""
    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def carried(message: Message, id: str) -> Message:
    """A message as it arrives: taken apart, and put together again."""
    arrived: Message = inflate_object_from_contents(message.object_id, parts(message))
    arrived.metadata.__dict__["_message_id"] = id
    return arrived


def obedient(client: str, delay: float = 1.0) -> Behaviour:
    """Echoes every request after a while."""
    return lambda request: (delay, Reply(client, body=b"re:" + request.body))


@dataclass
class FakeGrid:
    """Nodes by the names that their keys are known under."""

    nodes: dict[str, Behaviour]
    now: float = 0.0
    sent: list[tuple[float, str, Request]] = field(default_factory=list)
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    refuses: bool = False  # to take messages
    _names: list[str] = field(default_factory=list)  # in the order in which nodes came, which gives them numbers
    _replies: dict[str, tuple[float, Message]] = field(default_factory=dict)
    _ids: Iterable[int] = field(default_factory=itertools.count)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for event in [e for e in self.events if e[0] <= self.now]:
            self.events.remove(event)
            event[1]()

    def at(self, when: float, event: Callable[[], None]) -> None:
        self.events.append((when, event))

    def get_nodes(self) -> list[NodeInfo]:
        self._names += [name for name in self.nodes if name not in self._names]
        return [NodeInfo(node_id=1 + self._names.index(name), name=name) for name in self.nodes]

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        ids: list[str | None] = []
        for message in messages:
            if self.refuses:
                ids.append(None)
                continue
            ids.append(id := f"m{next(self._ids)}")
            name = self._names[message.metadata.dst_node_id - 1]
            self.arrive(name, carried(message, id))
        return ids

    def arrive(self, name: str, message: Message) -> None:
        """A request arrives at a node."""
        request = read_request(message)
        self.sent.append((self.now, name, request))
        answer = self.nodes[name](request) if name in self.nodes else (0.0, Error(5))
        if answer is not None:
            self.answer(message, *answer)

    def answer(self, message: Message, delay: float, answer: Answer) -> None:
        made = Message(pack(answer) if isinstance(answer, Reply) else answer, reply_to=message)
        if isinstance(answer, Error) and answer.code in (3, 5):
            made.metadata.__dict__["_src_node_id"] = 1  # as from Flower's own server
        self._replies[message.metadata.message_id] = self.now + delay, carried(made, "reply")

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        ready = [id for id in ids if id in self._replies and self._replies[id][0] <= self.now]
        return [self._replies.pop(id)[1] for id in ready]
