"""Requests and replies over a Grid: who is asked, in which order answers come, what becomes of those that do not."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from capfl.engines.flower.exchange import Delivery, Nodes, Patience
from capfl.engines.flower.messages import HERE, LONG, RECORD, SHORT, Reply, Request, pack, read_reply, read_request
from capfl.errors import WireError, public
from capfl.types import Failure
from fake_grid import Behaviour, FakeGrid, obedient, parts

CLIENTS = ["a", "b", "c"]
OTHERS = {"a": b"re:a1", "c": b"re:c1"}


class World:
    """A run over three clients, each with a node, of which that of b may behave in another way."""

    def __init__(self, b: Behaviour | None = None, node: float = 50.0) -> None:
        self.grid = FakeGrid({"c": obedient("c", 5.0), "b": b or obedient("b", 1.0), "a": obedient("a", 9.0)})
        self.noted: list[tuple[str, str]] = []
        self.nodes = Nodes(self.grid, CLIENTS, lambda event, client, _: self.noted.append((event, client)), self.clock)
        self.patience = Patience(100.0, node)
        self.yielded: list[float] = []

    def clock(self) -> float:
        return self.grid.now

    def ask(self, clients: list[str] = CLIENTS, round: int = 1) -> dict[str, bytes | Failure]:
        def request(client: str) -> Request:
            return Request("run", "train", "fedit", round, client, 0, f"{client}{round}".encode())

        found = []
        for answer in Delivery(self.nodes, self.patience, request, 2**21, self.grid.sleep).replies(clients):
            self.yielded.append(self.grid.now)
            found.append(answer)
        assert [client for client, _ in found] == clients
        return dict(found)

    def asked(self) -> list[str]:
        return [name for _, name, request in self.grid.sent if name == request.client]


def test_each_client_is_sent_its_own_request_and_replies_come_in_the_order_of_the_clients() -> None:
    world = World()
    assert world.ask() == {"a": b"re:a1", "b": b"re:b1", "c": b"re:c1"}
    assert world.asked() == ["a", "b", "c"]
    assert world.yielded[0] == pytest.approx(world.yielded[2])  # b and c had been there before
    assert max(time for time, _, _ in world.grid.sent) == 0  # all asked at once
    assert world.ask(["b"], round=2) == {"b": b"re:b2"}
    assert world.asked() == ["a", "b", "c", "b"]


@pytest.mark.parametrize(
    ("answer", "stage", "reason", "code"),
    [
        (None, "deadline", "no answer within 100 s", "network"),
        (Error(3), "deadline", "no answer within 100 s", "network"),
        (Error(5, "Patient Miller"), "node", "it has gone", "network"),
        (Error(8), "node", "the process that was to answer has ended", "network"),
        (Error(99, "Patient Miller"), "node", "Flower's error 99", "network"),
        (Reply("b", "training"), "train", public("training"), "training"),
        (Reply("b", "version"), "train", public("version"), "version"),
        (Reply("c2"), "node", "its node was started with --client c2", "wire"),
        (Reply("b", capfl="0.0.1"), "node", f"the site has capfl 0.0.1; the server has {HERE}", "wire"),
    ],
)
def test_whoever_does_not_answer_is_a_failure_and_the_others_arrive(
    answer: Reply | Error | None, stage: str, reason: str, code: str
) -> None:
    """Errors 3 and 5 of Flower come from its server: the node that a reply is from tells nothing."""
    answers = World(lambda request: answer and (2.0, answer)).ask()
    assert answers.pop("b") == Failure("b", stage, reason, code)
    assert answers == OTHERS


GOOD = {"client": "b", "code": "", "body": b"re:b1", "capfl": HERE}
RECORDS: list[Any] = [
    RecordDict(),
    RecordDict({"other": ConfigRecord(GOOD)}),
    RecordDict({RECORD: MetricRecord({"client": 1})}),
    RecordDict({RECORD: ConfigRecord({RECORD: b"[" * 100_000})}),  # deep JSON
    RecordDict({RECORD: ConfigRecord(GOOD), LONG: ConfigRecord({})}),
    RecordDict({RECORD: ConfigRecord(GOOD), LONG: ArrayRecord({LONG: Array("bytes", (1,), "numpy.ndarray", b"x")})}),
    *(
        RecordDict({RECORD: ConfigRecord(GOOD | {field: value})})
        for field, value in [
            ("client", []), ("client", 5), ("client", "x" * 500_000), ("client", "\x1b[2Jb"), ("client", "b\n"),
            ("code", ["data"]), ("code", "Patient Miller"), ("code", "nonsense"), ("code", "data\x1b"),
            ("body", "text"), ("body", 2.5),
            ("body", b"x" * (2**21 + 1)), ("capfl", True), ("more", 1),
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize("content", RECORDS)
def test_a_reply_that_cannot_be_read_is_a_failed_reply_of_its_client(content: RecordDict) -> None:
    answers = World(lambda request: (2.0, content)).ask()
    failure = answers.pop("b")
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.code) == ("node", "wire")
    assert len(failure.reason) < 200
    assert failure.reason.isprintable()
    assert answers == OTHERS


def test_a_late_reply_and_one_to_a_message_that_nobody_sent_are_left_out() -> None:
    world = World(obedient("b", 130.0))
    assert isinstance(world.ask()["b"], Failure)
    world.grid.nodes["b"] = obedient("b", 60.0)  # while the first reply comes in
    assert world.ask(round=2)["b"] == b"re:b2"
    pull = world.grid.pull_messages

    def forged(ids: Any) -> list[Message]:
        found = pull(ids)
        for message in found:
            message.metadata.__dict__["_reply_to_message_id"] = "another"
        return found

    world.grid.pull_messages = forged  # type: ignore[method-assign]
    assert world.ask(round=3)["a"] == Failure("a", "deadline", "no answer within 100 s", "network")


def test_a_node_that_goes_fails_and_is_waited_for_when_it_is_asked_again() -> None:
    world = World()
    world.ask()
    gone = world.grid.nodes.pop("b")
    world.grid.now -= 8  # it is not seen that it has gone
    assert world.ask(round=2)["b"] == Failure("b", "node", "it has gone", "network")
    world.grid.at(world.grid.now + 20, lambda: world.grid.nodes.update({"b": gone}))
    assert world.ask(["b"], round=2)["b"] == b"re:b2"
    assert world.noted == [*(("joined", client) for client in CLIENTS), ("left", "b"), ("joined", "b")]
    world.grid.refuses = True
    assert world.ask(["b"])["b"] == Failure("b", "node", "Flower's server did not take the message", "network")


def test_a_client_without_a_node_is_waited_for_and_fails_after_a_while() -> None:
    world = World()
    late = world.grid.nodes.pop("b")
    world.grid.nodes["stranger"] = obedient("stranger")
    reason = "no node with its key is connected; there are nodes of others: stranger; waited 50 s"
    assert world.ask()["b"] == Failure("b", "absent", reason, "network")
    assert 50 < world.grid.now < 51
    world.grid.at(world.grid.now + 20, lambda: world.grid.nodes.update({"b": late}))
    assert world.ask(round=2)["b"] == b"re:b2"
    assert sorted(world.asked()) == ["a", "a", "b", "c", "c"]


FRAMING = 1500  # bytes of a message of Flower beside capfl's own


@pytest.mark.parametrize("length", [0, 600, SHORT, SHORT + 1])
def test_what_is_packed_is_read_and_long_replies_wait_on_disk(length: int) -> None:
    body = (b"\n\x00{}\n" * length)[:length]
    request = Request("r", "validate", "ca-pfl", 7, "north", 6, body)
    message = sent(pack(request))
    assert read_request(message) == request
    assert length <= sum(map(len, parts(message).values())) < length + FRAMING
    assert read_reply(sent(pack(Reply("north", body=body))), length) == Reply("north", body=body)
    assert World(lambda request: (0.0, Reply("b", body=body))).ask()["b"] == body


@pytest.mark.parametrize(
    ("field", "value"),
    [("run", "../elsewhere"), ("run", ".hidden"), ("run", "a/b"), ("run", ""), ("kind", "shell"), ("round", -1),
     ("used", 2**40), ("capfl", "0.0.1"), ("method", "x\n")],
)  # fmt: skip
def test_a_request_that_no_server_sends_is_refused(field: str, value: object) -> None:
    values = vars(Request("r", "train", "fedit", 1, "b", 0, b"")) | {field: value}
    with pytest.raises(WireError, match=r"cannot be read|the server has capfl 0\.0\.1"):
        read_request(sent(RecordDict({RECORD: ConfigRecord(values)})))


def sent(content: RecordDict) -> Message:
    return Message(content, dst_node_id=1, message_type="train")
