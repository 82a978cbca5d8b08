"""Requests and replies over a Grid: who is asked, in which order answers come, what becomes of those that do not."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict

from capfl.engines.flower.delivery import Delivery, Patience
from capfl.engines.flower.nodes import Nodes
from capfl.engines.flower.records import SHORT, Ask, Reply, pack, unpack
from capfl.errors import WireError
from capfl.types import Failure
from fake_grid import Behaviour, FakeGrid, hello, obedient

CLIENTS = ["a", "b", "c"]


class World:
    def __init__(self, grid: FakeGrid, answer: float = 100.0, node: float = 50.0) -> None:
        self.grid = grid
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self.nodes = Nodes(grid, "run", CLIENTS, lambda what, about: self.noted.append((what, about)), grid.clock)
        self.patience = Patience(answer, node)
        self.yielded: list[float] = []

    def ask(self, clients: list[str] = CLIENTS, round: int = 1) -> list[tuple[str, bytes | Failure]]:
        def request(client: str) -> Ask:
            return Ask("run", "train", "fedit", round, client, 0, f"{client}{round}".encode())

        found = []
        delivery = Delivery(self.grid, self.nodes, self.patience, request, self.grid.clock, self.grid.sleep)
        for answer in delivery.replies(clients):
            self.yielded.append(self.grid.now)
            found.append(answer)
        return found

    def asked(self) -> list[tuple[int, str]]:
        return [(node, ask.client) for _, node, ask in self.grid.sent if ask.kind == "train"]

    def of(self, what: str) -> list[dict[str, Any]]:
        return [about for event, about in self.noted if event == what]


def three(**others: Behaviour) -> FakeGrid:
    """A node for each client, in an order that is not that of the ids."""
    nodes = {30: obedient("a", 9.0), 10: obedient("b", 1.0), 20: obedient("c", 5.0)}
    return FakeGrid(nodes | {int(key[1:]): behaviour for key, behaviour in others.items()})


def test_replies_come_in_the_order_of_the_clients_however_long_they_take() -> None:
    world = World(three())
    assert world.ask() == [("a", b"re:a1"), ("b", b"re:b1"), ("c", b"re:c1")]
    assert world.asked() == [(30, "a"), (10, "b"), (20, "c")]
    assert world.yielded[0] == pytest.approx(world.yielded[2])  # b and c had been there before
    assert max(time for time, _, _ in world.grid.sent) == 0  # all asked at once


def test_a_client_is_sent_its_own_request_and_nobody_else_is() -> None:
    world = World(three())
    assert world.ask(["b"]) == [("b", b"re:b1")]
    assert world.asked() == [(10, "b")]


def test_long_replies_wait_on_disk_and_arrive_whole() -> None:
    long = bytes(range(256)) * 5000
    world = World(three(n10=lambda ask: (0.0, hello("b")) if ask.kind == "hello" else (0.0, Reply("b", blob=long))))
    assert dict(world.ask())["b"] == long


def test_one_that_does_not_answer_fails_and_the_others_arrive() -> None:
    world = World(three(n10=lambda ask: (0.0, hello("b")) if ask.kind == "hello" else None))
    answers = dict(world.ask())
    assert answers["b"] == Failure("b", "deadline", "no answer within 100 s")
    assert (answers["a"], answers["c"]) == (b"re:a1", b"re:c1")
    assert 100 <= world.grid.now < 101


def test_a_late_reply_is_not_taken_for_one_of_the_next_round() -> None:
    world = World(three(n10=obedient("b", 130.0)))
    assert dict(world.ask())["b"] == Failure("b", "deadline", "no answer within 100 s")
    world.grid.nodes[10] = obedient("b", 60.0)  # while the first reply comes in
    assert dict(world.ask(round=2))["b"] == b"re:b2"


@pytest.mark.parametrize(
    ("code", "reason", "stage", "said"),
    [
        (3, "", "deadline", "no answer within 100 s"),
        (5, "", "node", "it has gone"),
        (5, "Node Unavailable", "node", "it has gone: Node Unavailable"),
        (8, "", "node", "the process that was to answer has ended"),
        (2, "boom", "node", "its app raised an error: boom"),
        (99, "", "node", "Flower's error 99"),
    ],
)
def test_errors_of_flower_fail_the_client_whose_message_it_was(code: int, reason: str, stage: str, said: str) -> None:
    """Codes 3 and 5 come from the link itself: the node that a reply is from tells nothing."""
    world = World(three(n10=lambda ask: (0.0, hello("b")) if ask.kind == "hello" else (2.0, Error(code, reason))))
    answers = dict(world.ask())
    assert answers.pop("b") == Failure("b", stage, said)
    assert set(answers.values()) == {b"re:a1", b"re:c1"}


def test_a_failure_at_the_client_keeps_its_stage_and_reason() -> None:
    def answer(ask: Ask) -> tuple[float, Reply | Error]:
        return (0.0, hello("b")) if ask.kind == "hello" else (1.0, Reply("b", "TrainingError", "a loss of nan"))

    assert dict(World(three(n10=answer)).ask())["b"] == Failure("b", "TrainingError", "a loss of nan")


def test_a_request_to_a_node_that_has_just_gone_fails() -> None:
    world = World(three())
    world.ask()
    del world.grid.nodes[10]
    assert dict(world.ask(round=2))["b"] == Failure("b", "node", "it has gone")
    world.grid.at(world.grid.now + 20, lambda: world.grid.nodes.update({10: obedient("b")}))
    assert dict(world.ask(["b"], round=2))["b"] == b"re:b2"  # asked again, it is waited for
    assert world.asked().count((10, "b")) == 3


def test_a_client_without_a_node_is_waited_for() -> None:
    grid = three()
    late = grid.nodes.pop(10)
    grid.at(20.0, lambda: grid.nodes.update({11: late}))
    world = World(grid)
    assert dict(world.ask())["b"] == b"re:b1"
    assert world.asked() == [(30, "a"), (20, "c"), (11, "b")]
    assert 20 < world.grid.now < 25


def test_a_client_whose_node_never_comes_fails_after_a_while() -> None:
    grid = three()
    del grid.nodes[10]
    world = World(grid)
    assert dict(world.ask())["b"] == Failure("b", "absent", "no node of that name is connected; waited 50 s")
    assert 50 < grid.now < 51
    assert [client for _, client in world.asked()] == ["a", "c"]


def test_a_node_that_leaves_and_comes_back_is_asked_again_whose_it_is() -> None:
    grid = three()
    world = World(grid)
    world.ask()
    again = grid.nodes.pop(10)
    grid.at(grid.now + 9, lambda: grid.nodes.update({10: again}))
    grid.now += 3
    assert dict(world.ask(round=2))["b"] == b"re:b2"
    assert [about["client"] for about in world.of("left")] == ["b"]
    assert sorted(about["client"] for about in world.of("joined")) == ["a", "b", "b", "c"]


def test_of_two_nodes_that_claim_a_client_the_first_has_it_until_it_leaves() -> None:
    grid = three(n99=obedient("b", 2.0))
    world = World(grid)
    world.ask()
    assert (99, "b") not in world.asked()
    (refused,) = world.of("refused")
    assert refused["node"] == "99"
    assert refused["reason"] == "node 99 says that it is 'b', and so does node 10, which came before it"
    del grid.nodes[10]
    grid.now += 3
    assert dict(world.ask(round=2))["b"] == b"re:b2"
    assert (99, "b") in world.asked()
    assert len(world.of("refused")) == 1


def test_a_node_of_an_unknown_client_is_refused_once() -> None:
    world = World(three(n99=obedient("stranger")))
    world.ask()
    world.ask(round=2)
    (refused,) = world.of("refused")
    assert "'stranger', whom the run does not know; it knows a, b, c" in refused["reason"]


def test_a_node_whose_key_is_anothers_is_refused() -> None:
    grid = three()
    grid.names = {10: "a", 20: "c", 30: "a"}
    world = World(grid)
    failure = dict(world.ask())["b"]
    assert failure == Failure("b", "absent", "node 10 says that it is 'b', but its key is that of 'a'; waited 50 s")
    assert len(world.of("refused")) == 1


def test_a_node_with_another_capfl_is_refused() -> None:
    world = World(three(n10=lambda ask: (0.0, hello("b", "0.0.1"))))
    failure = dict(world.ask())["b"]
    assert isinstance(failure, Failure)
    assert "node 10 of 'b' has capfl 0.0.1; the server has" in failure.reason


def test_a_node_that_was_busy_when_it_was_asked_is_asked_again() -> None:
    tries: list[Ask] = []

    def busy(ask: Ask) -> tuple[float, Reply | Error] | None:
        if ask.kind == "hello":
            tries.append(ask)
            return (10.0, Error(3)) if len(tries) == 1 else (0.0, hello("b"))
        return 1.0, Reply("b", blob=b"at last")

    assert dict(World(three(n10=busy)).ask())["b"] == b"at last"
    assert len(tries) == 2


def test_a_node_whose_answer_was_lost_with_the_link_is_asked_again() -> None:
    tries: list[Ask] = []

    def lost(ask: Ask) -> tuple[float, Reply | Error] | None:
        if ask.kind == "hello":
            tries.append(ask)
            return None if len(tries) == 1 else (0.0, hello("b"))
        return 1.0, Reply("b", blob=b"at last")

    assert dict(World(three(n10=lost), node=200.0).ask())["b"] == b"at last"
    assert len(tries) == 2


def test_a_node_that_answers_as_another_client_fails_and_is_asked_again() -> None:
    names = ["b", "b", "c2"]

    def changed(ask: Ask) -> tuple[float, Reply | Error]:
        return (0.0, hello(names.pop(0))) if ask.kind == "hello" else (1.0, Reply("c2", blob=b"?"))

    world = World(three(n10=changed))
    assert dict(world.ask())["b"] == Failure("b", "node", "its node answers as 'c2'")


def test_the_link_may_refuse_a_message() -> None:
    world = World(three())
    world.ask()
    world.grid.refuses = True
    assert dict(world.ask(["b"]))["b"] == Failure("b", "node", "the link did not take the message")


@pytest.mark.parametrize("length", [0, 600, SHORT, 2 * SHORT])
def test_what_is_packed_is_unpacked(length: int) -> None:
    ask = Ask("r", "validate", "ca-pfl", 7, "north", 6, (b"\n\x00{}\n" * length)[:length])
    assert unpack(Ask, pack(ask)) == ask
    reply = Reply("north", "WireError", 'a "reason"\nof two lines', b"")
    assert unpack(Reply, pack(reply)) == reply


def test_what_was_not_packed_is_refused() -> None:
    with pytest.raises(WireError, match="cannot be read"):
        unpack(Ask, RecordDict())
    with pytest.raises(WireError, match="cannot be read"):
        unpack(Ask, pack(Reply("north")))
    foreign = Array("bytes", (1,), "numpy.ndarray", b"x")
    with pytest.raises(WireError, match=r"numpy\.ndarray"):
        unpack(Ask, RecordDict({"capfl": ArrayRecord({"capfl": foreign})}))
    with pytest.raises(WireError, match="type 'str' is none of capfl's"):
        unpack(Ask, RecordDict({"capfl": ConfigRecord({"capfl": "text"})}))


@pytest.mark.parametrize("length", [600, 2 * SHORT])
def test_no_strategy_of_flower_averages_it(length: int) -> None:
    from flwr.app import Message, MetricRecord
    from flwr.serverapp.exception import InconsistentMessageReplies
    from flwr.serverapp.strategy import FedAvg

    content = pack(Reply("north", blob=bytes(length)))
    content["metrics"] = MetricRecord({"num-examples": 3})
    grid = three()
    question = Message(pack(Ask("r", "train")), dst_node_id=10, message_type="train")
    grid.push_messages([question])
    replies = [Message(content, reply_to=question) for _ in range(2)]
    with pytest.raises((InconsistentMessageReplies, TypeError), match=r"ArrayRecord|capfl\.message"):
        FedAvg().aggregate_train(1, replies)
