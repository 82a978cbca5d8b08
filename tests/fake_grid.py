"""A Grid without a network, on a clock that moves when somebody sleeps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

import capfl
from capfl.engines.flower.records import Ask, Reply, pack, unpack

TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1

Behaviour = Callable[[Ask], "tuple[float, Reply | Error] | None"]
"""What a node does with a request: after how many seconds it answers, and what. None: never."""


def obedient(client: str, delay: float = 1.0) -> Behaviour:
    """Says who it is at once, and echoes everything else after a while."""

    def answer(ask: Ask) -> tuple[float, Reply | Error] | None:
        if ask.kind == "hello":
            return 0.0, hello(client)
        return delay, Reply(client, blob=b"re:" + ask.blob)

    return answer


def hello(client: str, version: str = capfl.__version__) -> Reply:
    return Reply(client, blob=json.dumps({"capfl": version}).encode())


@dataclass
class FakeGrid:
    """Nodes by id, with the names that their keys are known under."""

    nodes: dict[int, Behaviour] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    now: float = 0.0
    sent: list[tuple[float, int, Ask]] = field(default_factory=list)
    pulled: list[list[str]] = field(default_factory=list)
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    refuses: bool = False  # to take messages
    _replies: dict[str, tuple[float, Message]] = field(default_factory=dict)
    _ids: Iterable[int] = field(default_factory=itertools.count)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for event in [e for e in self.events if e[0] <= self.now]:
            self.events.remove(event)
            event[1]()

    def at(self, when: float, event: Callable[[], None]) -> None:
        self.events.append((when, event))

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=self.names.get(node, "")) for node in self.nodes]

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        ids: list[str | None] = []
        for message in messages:
            if self.refuses:
                ids.append(None)
                continue
            ids.append(id := f"m{next(self._ids)}")
            message.metadata.__dict__["_message_id"] = id
            node, ask = message.metadata.dst_node_id, unpack(Ask, message.content)
            self.sent.append((self.now, node, ask))
            answer = self.nodes[node](ask) if node in self.nodes else (0.0, Error(5))
            if answer is not None:
                self.answer(message, *answer)
        return ids

    def answer(self, message: Message, delay: float, reply: Reply | Error) -> None:
        made = Message(pack(reply) if isinstance(reply, Reply) else reply, reply_to=message)
        if isinstance(reply, Error) and reply.code in (3, 5):
            made.metadata.__dict__["_src_node_id"] = 1  # as from the link
        self._replies[message.metadata.message_id] = self.now + delay, made

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        self.pulled.append(list(ids))
        ready = [id for id in ids if id in self._replies and self._replies[id][0] <= self.now]
        return [self._replies.pop(id)[1] for id in ready]
