"""Clients that say what their data are like, before they train: who is asked, and what a failure does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from capfl.config.schema import CodecConfig, FederationConfig, TrainConfig
from capfl.errors import ClientError, DataError, WireError
from capfl.methods import Method
from capfl.methods.grouping import Grouping
from capfl.packing import pack
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import ANSWERS, LocalTrainer
from capfl.roles.limits import Limits
from capfl.round import run_round
from capfl.types import (
    Adapter,
    ClientId,
    ClientState,
    Failure,
    Introduction,
    Kind,
    Request,
    RoundRecord,
    ServerState,
    Trained,
)  # fmt: skip
from capfl.wire import decode_introduction, encode_introduction
from capfl.wire.records import vector

START: Adapter = {"m.A": torch.zeros(1, 2), "m.B": torch.zeros(1, 1)}
CLIENTS = ["a", "b", "c"]


@dataclass(frozen=True)
class Said:
    size: torch.Tensor = vector("positive")


@dataclass(frozen=True)
class Remembered:
    """What a client keeps."""

    size: float


@dataclass(frozen=True)
class Heard:
    """What the server keeps."""

    sizes: Mapping[ClientId, float]


@dataclass(frozen=True)
class Listed(Grouping):
    """The clients are taken down, and a group of their own is made for those of size 2."""

    about = "a stub"
    describes = True
    divides = True
    server_state = Heard
    client_state = Remembered
    up = Said

    def start(self) -> Heard:
        return Heard({})

    def described(self, description: object) -> Remembered:
        assert isinstance(description, Said)
        return Remembered(float(description.size))

    def remember(self, said: object | None, memory: ClientState) -> object | None:
        return memory.grouping

    def unknown(self, state: ServerState, clients: Sequence[ClientId]) -> list[ClientId]:
        return [client for client in clients if client not in state.grouping.sizes]  # type: ignore[union-attr]

    def check(self, said: Introduction) -> None:
        if said.grouping is None:
            raise WireError("it says nothing")

    def form(self, state: ServerState, introductions: Mapping[ClientId, Introduction]) -> ServerState:
        new = {client: float(said.grouping.size) for client, said in introductions.items()}  # type: ignore[union-attr]
        placed = dict.fromkeys((client for client, size in new.items() if size == 2), "two")
        groups = {"two": state.everybody, **state.groups} if placed else state.groups
        heard = Heard({**state.grouping.sizes, **new})  # type: ignore[union-attr]
        return replace(state, grouping=heard, groups=groups, group_of={**state.group_of, **placed})


METHOD = Method("listed", "a row of a test", "nowhere", grouping=Listed())
LIMITS = Limits(TrainConfig(steps=1, learning_rate=1.0), 100, 10.0, {"size": 1})
AGREED = Agreement(METHOD, CodecConfig(values="fp32"), START, limits=LIMITS)


class Federation:
    """Clients whose data have a size. ``wrong`` has other replies to requests to introduce themselves."""

    def __init__(self, policy: str = "skip") -> None:
        self.config, self.state = FederationConfig(on_failure=policy), METHOD.start(START)  # type: ignore[arg-type]
        self.sizes = {"a": 1.0, "b": 2.0, "c": 2.0}
        self.memory = {client: ClientState(client) for client in CLIENTS}
        self.wrong: dict[ClientId, Callable[[bytes], bytes | Failure]] = {}
        self.times = 99
        self.calls: list[tuple[Kind, str]] = []
        self.sent: dict[ClientId, bytes] = {}

    def trainer(self, client: ClientId) -> LocalTrainer:
        def train(start: Adapter, *rest: object) -> Trained:
            return Trained({name: t + 1 for name, t in start.items()}, (1.0,))

        return LocalTrainer(client, 10, train, lambda: Said(torch.tensor([self.sizes[client]])))

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        self.calls.append((kind, "".join(clients)))
        for client in clients:
            self.sent[client] = request(client)
            trainer = self.trainer(client)
            reply, self.memory[client] = ANSWERS[kind](self.sent[client], self.memory[client], trainer, AGREED)
            times = sum(kind == "introduce" and client in asked for kind, asked in self.calls)
            fails = kind == "introduce" and client in self.wrong and times <= self.times
            yield client, self.wrong[client](reply) if fails else reply

    def play(self) -> RoundRecord:
        before = pack(self.state)
        after, record = run_round(self.state, CLIENTS, AGREED, self.exchange, self.config, 0)
        assert pack(self.state) == before
        assert all(sum(entry.parts.values()) == entry.bytes for entry in record.ledger)
        self.state = after
        return record


def gone(client: ClientId) -> dict[ClientId, Callable[[bytes], bytes | Failure]]:
    return {client: lambda reply: Failure(client, "power", "gone")}


def test_clients_introduce_themselves_once_and_are_in_groups_before_they_train() -> None:
    played = Federation("stop")
    record = played.play()
    assert played.calls == [("introduce", "abc"), ("train", "abc")]
    assert record.groups == {"b": "two", "c": "two"}
    assert played.state.groups.keys() == {"everybody", "two"}
    assert [(e.client, e.direction, e.parts["records"]) for e in record.ledger] == [
        *((client, way, 8 * (way == "up")) for client in CLIENTS for way in ("down", "up")),
        *((client, way, 0) for client in CLIENTS for way in ("down", "up")),
    ]
    assert [e.bytes for e in record.ledger[:2]] == [43, 43 + 5 + 8]
    assert {client: memory.grouping for client, memory in played.memory.items()} == {
        client: Remembered(size) for client, size in played.sizes.items()
    }
    again = played.play()
    assert played.calls[2:] == [("train", "abc")]
    assert len(again.ledger) == 6


def test_a_client_whose_introduction_failed_is_left_out_and_asked_again_in_the_next_round() -> None:
    played = Federation("skip")
    played.wrong = gone("b")
    record = played.play()
    assert played.calls == [("introduce", "abc"), ("train", "ac")]
    assert record.clients == ("a", "c")
    assert record.failures == (Failure("b", "power", "gone"),)
    assert [(e.client, e.direction) for e in record.ledger[:5]] == [
        ("a", "down"), ("a", "up"), ("b", "down"), ("c", "down"), ("c", "up"),
    ]  # fmt: skip
    assert "b" not in played.state.visits
    played.wrong = {}
    record = played.play()
    assert played.calls[2:] == [("introduce", "b"), ("train", "abc")]
    assert record.clients == ("a", "b", "c")
    assert played.state.group_of == {"b": "two", "c": "two"}


def test_a_client_that_introduces_itself_at_the_second_try_trains_in_the_same_round() -> None:
    played = Federation("retry")
    played.wrong, played.times = gone("b"), 1
    record = played.play()
    assert played.calls == [("introduce", "abc"), ("introduce", "b"), ("train", "abc")]
    assert record.clients == ("a", "b", "c")
    assert record.failures == (Failure("b", "power", "gone"),)
    assert record.groups == {"b": "two", "c": "two"}


@pytest.mark.parametrize("policy", ["skip", "retry"])
def test_if_nobody_introduces_itself_the_round_says_so(policy: str) -> None:
    played = Federation(policy)
    played.wrong = gone("a") | gone("b") | gone("c")
    with pytest.raises(ClientError, match=r"'c' failed in round 1 \(power\): no client answered; gone"):
        played.play()
    assert [kind for kind, _ in played.calls] == ["introduce"] * (1 if policy == "skip" else 4)


def test_stop_names_the_client_that_did_not_introduce_itself() -> None:
    played = Federation("stop")
    played.wrong = gone("b")
    with pytest.raises(ClientError, match=r"client 'b' failed in round 1 \(power\): gone"):
        played.play()


def said(client: ClientId = "b", round: int = 1, n_train: int = 10, size: tuple[float, ...] | None = (2.0,)) -> bytes:
    record = None if size is None else Said(torch.tensor(size))
    return encode_introduction(Introduction(round, client, n_train, record), AGREED.up, AGREED.schema)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "shorter than a header"),
        (said()[:-1], "checksum"),
        (said("c"), "says that it comes from 'c'"),
        (said(round=2), "is for round 2, this is round 1"),
        (said(n_train=0), "no training items"),
        (said(n_train=101), "101 training items, federation.max_items is 100"),
        (said(size=(2.0, 2.0)), "2 numbers of size, expected 1"),
        (said(size=None), "it says nothing"),
    ],
    ids=range(8),
)
def test_an_introduction_that_does_not_fit_is_a_failure_of_that_client(reply: bytes, reason: str) -> None:
    played = Federation()
    played.wrong = {"b": lambda honest: reply}
    record = played.play()
    assert record.clients == ("a", "c")
    assert [(f.client, f.stage, f.code) for f in record.failures] == [("b", "decode", "wire")]
    assert reason in record.failures[0].reason
    (up,) = (e for e in record.ledger if (e.client, e.direction) == ("b", "up"))
    assert up.parts == {"unreadable": len(reply)}


def test_an_engine_must_hand_on_one_introduction_a_client() -> None:
    for replies in ("ab", "cba"):
        with pytest.raises(RuntimeError, match="the engine was to ask a, b, c, and gave replies of"):
            run_round(
                METHOD.start(START), CLIENTS, AGREED, lambda *_, replies=replies: ((c, said(c)) for c in replies),
                FederationConfig(), 0,
            )  # fmt: skip


# -- the client's side -------------------------------------------------------------------------------------------


def test_an_introduction_says_what_the_data_are_like_and_is_remembered() -> None:
    played, memory = Federation(), ClientState("a", steps=3)
    asked = server.ask(played.state, "a", AGREED).blob
    reply, after = ANSWERS["introduce"](asked, memory, played.trainer("a"), AGREED)
    introduction, _ = decode_introduction(reply, AGREED.up, AGREED.schema, AGREED.records_up)
    assert (introduction.round, introduction.client, introduction.n_train) == (1, "a", 10)
    assert introduction.grouping == Said(torch.tensor([1.0]))
    assert after == replace(memory, grouping=Remembered(1.0))
    played.sizes["a"] = 9.0  # asked again, it goes on with what it remembers of its place among the others
    assert ANSWERS["introduce"](asked, after, played.trainer("a"), AGREED)[1] == after


def test_a_client_that_cannot_describe_its_data_or_is_not_meant() -> None:
    played, memory = Federation(), ClientState("a")
    for client, error, message in (
        ("a", DataError, "this client cannot describe its data"),
        ("b", WireError, "client 'a' received a message for 'b'"),
    ):
        asked = server.ask(played.state, client, AGREED).blob
        with pytest.raises(error, match=message):
            ANSWERS["introduce"](asked, memory, replace(played.trainer("a"), describe=None), AGREED)
