"""Rounds in turns, with real clients of a few numbers: each turn starts from what the one before has left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from adapters import CODECS
from capfl.checkpoint import StateReader
from capfl.config.schema import CodecConfig, FederationConfig, MethodConfig
from capfl.errors import CapflError, ConfigError, code_of
from capfl.methods import Method, build
from capfl.methods.grouping import Grouping
from capfl.methods.robust import refuse_no_mean
from capfl.packing import pack
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import ANSWERS, LocalTrainer, opened, received
from capfl.round import run_round, validate_round
from capfl.types import (
    EVERYBODY,
    Adapter,
    Broadcast,
    ClientId,
    ClientState,
    Failure,
    Introduction,
    Kind,
    Penalty,
    Request,
    RoundRecord,
    ServerState,
    Trained,
)  # fmt: skip
from capfl.wire import decode_broadcast, decode_update, differences, is_relayed, relay
from scored import right
from support import unpacked

START: Adapter = {"m.A": torch.zeros(2, 60), "m.B": torch.zeros(60, 2)}  # as long as many differences of a bit a value
STEP = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0}  # a bit a value carries these, and means of them, exactly
SKIP = FederationConfig(on_failure="skip")
EMPTY = "010100000000"  # NAMES, one byte: no tensor


def bits(adapter: Adapter) -> bytes:
    return b"".join(t.numpy().tobytes() for t in adapter.values())


@dataclass
class Federation:
    """Clients that add their step to all elements, in ``turns``; with ``uneven``, to each element another one."""

    turns: int = 3
    codec: CodecConfig = CODECS["ternary-dense"]
    uneven: bool = False
    items: dict[ClientId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.agreed = Agreement(build(MethodConfig(name="fedit", turns=self.turns)), self.codec, START, seed=1)
        self.state = self.agreed.method.start(START)
        self.clients = ["a", "b", "c"]
        self.memory: dict[ClientId, ClientState] = {}
        self.away: set[ClientId] = set()
        self.started: dict[ClientId, Adapter] = {}  # from what each client has trained last
        self.requests: dict[ClientId, list[Broadcast]] = {}  # of the last round
        self.replies: dict[ClientId, bytes] = {}

    def trainer(self, client: ClientId) -> LocalTrainer:
        def train(start: Adapter, round: int, first: int, penalty: Penalty | None) -> Trained:
            self.started[client] = start
            generator = torch.Generator().manual_seed(100 * round + ord(client))
            moved = {n: torch.randn(t.shape, generator=generator) if self.uneven else 1.0 for n, t in start.items()}
            return Trained({n: t + STEP[client] * moved[n] for n, t in start.items()}, (1.0,))

        return LocalTrainer(
            client,
            self.items.get(client, 10),
            train,
            score=lambda split, adapters: {model: right(1, 2, 0.5) for model in adapters},
        )

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            blob, memory = request(client), self.memory.get(client, ClientState(client))
            self.requests.setdefault(client, []).append(decode_broadcast(blob, self.agreed.down, self.agreed.schema))
            if client in self.away:
                yield client, Failure(client, "power", "gone")
                continue
            try:
                reply, self.memory[client] = ANSWERS[kind](blob, memory, self.trainer(client), self.agreed)
            except CapflError as error:
                yield client, Failure(client, kind, str(error), code_of(error))
                continue
            self.replies[client] = reply
            yield client, reply

    def order(self) -> list[list[ClientId]]:
        """The turns of the next round."""
        return self.agreed.method.order.of_round(self.clients, self.state.group_of, 0, self.state.round + 1)

    def play(self) -> RoundRecord:
        self.requests, before = {}, pack(self.state)
        after, record = run_round(self.state, self.clients, self.agreed, self.exchange, SKIP, 0)
        assert pack(self.state) == before, "the server's state was changed in place"
        assert all(sum(entry.parts.values()) == entry.bytes for entry in record.ledger)
        reader = StateReader(self.agreed.method, START)
        assert pack(unpacked(pack(after), reader)) == pack(after)
        assert all(pack(reader.client(pack(memory))) == pack(memory) for memory in self.memory.values())
        self.state = after
        return record

    def heard(self, client: ClientId) -> ClientState:
        """What a client remembers that is sent the newest version."""
        blob = server.request(self.state, client, self.agreed).blob
        return received(opened(blob, self.trainer(client), self.agreed), self.memory[client], self.agreed)

    def known(self, client: ClientId) -> Adapter:
        return self.heard(client).known

    @property
    def value(self) -> float:
        """Of all elements of the adapter of everybody."""
        (value,) = {float(x) for t in self.state.everybody.known.values() for x in t.unique()}
        return value


# -- turns -------------------------------------------------------------------------------------------------------


def test_each_turn_starts_from_what_the_one_before_has_left() -> None:
    played = Federation()
    ((first,), (second,), (third,)) = played.order()
    record = played.play()
    starts = {client: float(start["m.B"][0, 0]) for client, start in played.started.items()}
    assert starts == {first: 0.0, second: STEP[first], third: STEP[first] + STEP[second]}
    assert played.value == 7.0
    state = played.state
    assert (state.round, state.version) == (1, 3)
    assert state.versions == {first: 0, second: 1, third: 2}  # what each has been sent
    assert state.own == {first: 1, second: 2, third: 3}
    assert state.heard == state.visits == {"a": 1, "b": 1, "c": 1}
    assert record.clients == ("a", "b", "c")
    assert [entry.client for entry in record.ledger] == ["a", "a", "b", "b", "c", "c"]
    played.play()
    assert (played.value, played.state.version) == (14.0, 6)


def test_two_in_a_turn_are_averaged() -> None:
    played = Federation(turns=2)
    first, second = played.order()
    played.play()
    assert sorted([len(first), len(second)]) == [1, 2]
    assert played.value == sum(STEP[c] for c in first) / len(first) + sum(STEP[c] for c in second) / len(second)
    (lonely,) = min(first, second, key=len)
    assert played.state.own == {lonely: 1 if first == [lonely] else 2}


def test_one_turn_is_what_there_is_without_turns() -> None:
    played, plain = Federation(turns=1), Federation()
    plain.agreed = replace(plain.agreed, method=build(MethodConfig(name="fedit")))
    for _ in range(2):
        assert played.order() == [["a", "b", "c"]]
        records = [replace(each.play(), seconds=0.0) for each in (played, plain)]
        assert records[0] == records[1]
    assert pack(played.state) == pack(plain.state)
    assert (played.state.version, played.state.own) == (2, {})


def test_one_that_fails_is_passed_over() -> None:
    """Its turn leaves the adapter, by a difference without a tensor; the next one starts from there."""
    played = Federation()
    ((first,), (second,), (third,)) = played.order()
    played.away = {second}
    record = played.play()
    assert [failure.client for failure in record.failures] == [second]
    assert record.clients == tuple(sorted((first, third)))
    assert float(played.started[third]["m.B"][0, 0]) == STEP[first]
    assert played.value == STEP[first] + STEP[third]
    assert played.state.versions == {first: 0, third: 2}
    assert played.state.own == {first: 1, third: 3}
    assert [is_relayed(body) for body in played.state.everybody.log] == [True, False, True]
    assert played.state.everybody.log[1].hex() == EMPTY
    played.away = set()
    log = played.state.everybody.log
    played.play()
    told = played.requests[second][0].differences
    assert told[:3] == log  # from version 0, on which it may have trained for nothing
    assert all(bits(played.known(client)) == bits(played.state.everybody.known) for client in "abc")


def test_groups_take_their_turns_at_the_same_time() -> None:
    """a and b are in one, c is in none but that of all; where nobody of a group answers, its adapter stays."""
    played = Federation(turns=2)
    both = {EVERYBODY: played.state.everybody, "x": played.state.everybody}
    played.state = replace(played.state, groups=both, group_of={"a": "x", "b": "x"})
    (one, *_), (other,) = sorted(({"a", "b"} & set(turn)) for turn in played.order())[0], played.order()[1]
    played.play()
    x, everybody = played.state.groups["x"], played.state.everybody
    assert x.known["m.B"].unique().tolist() == [3.0]
    assert everybody.known["m.B"].unique().tolist() == [(STEP["abc".replace(other, "")[0]] + 4) / 2 + STEP[other]]
    assert [is_relayed(body) for body in x.log] == [True, True]
    assert [is_relayed(body) for body in everybody.log] == [False, True]
    assert played.state.own.keys() == {"a", "b"}
    assert one != other
    for client in "abc":
        assert bits(played.known(client)) == bits(played.state.group(client).known)

    played.away = {"a", "b"}
    before = played.state.groups["x"]
    played.play()
    after = played.state.groups["x"]
    assert bits(after.known) == bits(before.known)
    assert (after.log, after.idle) == (before.log, 2)
    assert [body.hex() for body in differences(after, 2, played.agreed.nothing) or ()] == [EMPTY, EMPTY]


# -- what is relayed, and what a client has of itself ----------------------------------------------------------------


@pytest.mark.parametrize("codec", ["default", "bf16", "ternary", "down", "random", "no-feedback", "fp32"])
def test_all_end_with_the_bits_of_the_server(codec: str) -> None:
    played = Federation(codec=CODECS[codec], uneven=True)
    for away in ("", "", "b", ""):
        played.away = set(away)
        played.play()
        for client in set("abc") - played.away:
            assert bits(played.known(client)) == bits(played.state.everybody.known)
    agreed, record = played.agreed, played.play()
    played.state, _ = validate_round(played.state, record, ["a", "b", "c"], agreed, played.exchange, SKIP)
    assert played.state.versions == dict.fromkeys("abc", played.state.version)
    assert all(memory.sent == b"" for memory in played.memory.values())
    played.play()
    for client in "abc":
        assert bits(played.known(client)) == bits(played.state.everybody.known)


def test_what_is_relayed_is_what_was_sent_and_nobody_is_sent_its_own() -> None:
    played = Federation(codec=CODECS["default"], uneven=True)
    order = [client for (client,) in played.order()]
    played.play()
    agreed, sent = played.agreed, []
    for number, client in enumerate(order, 1):
        said, _ = decode_update(played.replies[client], agreed.up, agreed.schema, START, number)
        sent.append(relay([(10, said.body)]))
        assert played.memory[client].sent == sent[-1]
        assert said.body in played.replies[client]
    assert played.state.everybody.log == tuple(sent)
    assert [played.requests[client][0].differences for client in order] == [(), tuple(sent[:1]), tuple(sent[:2])]
    now = [client for (client,) in played.order()]
    record = played.play()
    for client in now:
        own = order.index(client)
        assert played.requests[client][0].differences[: 3 - own] == (b"", *sent[own + 1 :])
    assert not any(entry.parts.get("catch-up") for entry in record.ledger)  # nobody has missed a round


def test_a_client_that_counts_for_less_than_it_says_still_has_the_same_bits() -> None:
    played = Federation(codec=CODECS["default"], uneven=True, items={"c": 10**6})
    played.play()
    played.play()
    assert played.state.claims["c"] == 10**6
    for client in "abc":
        assert bits(played.known(client)) == bits(played.state.everybody.known)


def test_a_client_that_lost_its_state_is_sent_everything_again() -> None:
    played = Federation(codec=CODECS["default"], uneven=True)
    ((first,), *_) = played.order()
    played.play()
    del played.memory[first]
    record = played.play()
    assert [(failure.client, failure.code) for failure in record.failures] == [(first, "version")]
    assert "an update of its own that it does not have" in record.failures[0].reason
    told, again = played.requests[first]
    assert told.differences[0] == b""
    assert b"" not in again.differences
    assert record.clients == ("a", "b", "c")
    assert bits(played.known(first)) == bits(played.state.everybody.known)


# -- who is placed in another group, or asked once more -----------------------------------------------------------


@dataclass(frozen=True)
class Moves(Grouping):
    """Whoever introduces itself goes to the group ``old``, but for ``stranger``, who goes to ``new``, which is new."""

    stranger: ClientId
    about = "a stub"

    def form(self, state: ServerState, introductions: object) -> ServerState:
        placed = {client: "new" if client == self.stranger else "old" for client in introductions}  # type: ignore[attr-defined]
        return replace(state, group_of={**state.group_of, **placed}, groups={"new": state.everybody, **state.groups})


def test_who_is_placed_in_a_group_that_there_was_knows_no_version_of_it() -> None:
    """Nor is it taken to have made one, though its update alone led to version 1 of the adapter that it had."""
    played = Federation(codec=CODECS["default"], uneven=True)
    ((first,), (second,), _) = played.order()
    played.play()
    elsewhere = Federation(codec=CODECS["default"], uneven=True)
    elsewhere.clients = ["d"]
    elsewhere.play()
    group = replace(elsewhere.state.everybody, log=3 * elsewhere.state.everybody.log)
    state = replace(played.state, groups={**played.state.groups, "old": group})
    moving = replace(played.agreed, method=replace(played.agreed.method, grouping=Moves(second)))
    said = {client: Introduction(2, client, 10, None) for client in (first, second)}
    after = server.introduced(state, said, moving)
    assert after.versions.keys() == after.own.keys() == set("abc") - {first}
    message = decode_broadcast(server.request(after, first, moving).blob, moving.down, moving.schema)
    assert message.differences == group.log  # from version 0, and nothing of its own


def test_asked_once_more_nothing_is_taken_for_granted() -> None:
    """All that a client may have been told before is told again, and is charged as catching up."""
    played = Federation(codec=CODECS["default"], uneven=True)
    ((first,), *_) = played.order()
    played.play()
    plain, again = (server.request(played.state, first, played.agreed, again=more) for more in (False, True))
    told = [decode_broadcast(m.blob, played.agreed.down, played.agreed.schema).differences for m in (plain, again)]
    assert told[0] == (b"", *told[1][1:])
    assert told[1] == played.state.everybody.log
    assert (plain.parts["catch-up"], again.parts["catch-up"]) == (0, sum(map(len, told[1][:-1])))


# -- what does not go with turns -----------------------------------------------------------------------------------


def test_turns_are_refused_where_they_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"method\.turns: clients of local do not learn from each other"):
        build(MethodConfig(name="local", turns=2))
    turned: Method = build(MethodConfig(name="fedit", turns=2))
    with pytest.raises(ConfigError, match=r"x: the clients of fedit train in 2 turns.* set method\.turns to 1"):
        refuse_no_mean(turned, "x")
    refuse_no_mean(build(MethodConfig(name="fedit", turns=1)), "x")
