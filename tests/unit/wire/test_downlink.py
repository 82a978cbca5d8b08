"""The downlink: whatever a client has missed, it ends up with just what the server says that it knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import CODECS, SMALL, normal, same
from capfl.errors import WireError
from capfl.types import Adapter, Broadcast, ClientState, ServerState
from capfl.wire import (
    Codec,
    adding,
    advance,
    broadcast,
    decode_broadcast,
    down_codec,
    encode_broadcast,
    receive,
    schema_hash,
)
from capfl.wire.values import VALUES

SCHEMA = schema_hash(SMALL, "base")
SPARSE = Codec(VALUES["ternary"], 0.15)
START = normal(99)
LARGE = {f"{i}.A": torch.zeros(4, 50) for i in range(4)}
LARGE_START = normal(99, LARGE)


class Server:
    """A server whose target moves at random, and a ledger of what it sent."""

    def __init__(self, codec: Codec, template: Adapter = SMALL) -> None:
        self.codec, self.template = codec, template
        self.start = normal(99, template)
        self.state = ServerState(0, self.start, known=self.start)
        self.sent: list[tuple[Broadcast, dict[str, int]]] = []

    def next(self) -> None:
        round = self.state.round + 1
        target = {n: t + normal(round, self.template)[n] for n, t in self.state.adapter.items()}
        self.state = advance(replace(self.state, round=round, adapter=target), target, self.codec, self.template)

    def tell(self, memory: ClientState, version: int) -> ClientState:
        """What the client knows after a message for ``version``, by way of the bytes."""
        told = broadcast(self.state, memory.client, version, self.template, self.start)
        message = encode_broadcast(told, self.codec, SCHEMA)
        assert sum(message.parts.values()) == len(message.blob)
        self.sent.append((told, message.parts))
        decoded = decode_broadcast(message.blob, self.codec, SCHEMA)
        assert decoded == told
        return receive(decoded, memory, adding(self.codec, self.template), self.template, self.start)


def bits(adapter: Adapter) -> bytes:
    return b"".join(t.numpy().tobytes() for t in adapter.values())


def moved(codec: Codec, rounds: int, template: Adapter = SMALL) -> Server:
    server = Server(codec, template)
    for _ in range(rounds):
        server.next()
    return server


# -- every client ends where the server thinks it is ---------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=15)
@given(
    template=st.sampled_from([SMALL, LARGE]),  # whole adapters are the shorter, differences are
    visits=st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=12),
    lost=st.integers(0, 11),
)
def test_present_absent_new_and_after_a_lost_disk(name, template, visits, lost):
    """``a`` takes part in every round, the others now and then; before one round ``b`` loses its disk."""
    server = Server(down_codec(CODECS[name], 0), template)
    memories, versions = {}, {}
    for n, visited in enumerate(visits):
        for client in sorted(visited | {"a"}):
            memory = memories.get(client, ClientState(client))
            if client == "b" and n == lost and "b" in memories:
                memory = ClientState("b")
                told = broadcast(server.state, "b", versions["b"], template, server.start)
                if told.state is None and versions["b"]:  # it does not serve, so it is noticed
                    with pytest.raises(WireError, match="'b' knows version 0"):
                        receive(told, memory, adding(server.codec, template), template, server.start)
                versions["b"] = 0  # as after any failure
            memory = server.tell(memory, versions.get(client, 0))
            assert bits(memory.known) == bits(server.state.known)
            assert memory.version == server.state.round
            memories[client] = replace(memory, known={}) if server.codec.exact else memory
            versions[client] = server.state.round
        server.next()


@pytest.mark.parametrize("name", CODECS)
def test_a_client_that_was_never_asked_joins_at_any_time(name):
    for rounds in range(6):
        server = moved(down_codec(CODECS[name], 0), rounds)
        assert bits(server.tell(ClientState("new"), 0).known) == bits(server.state.known)


def test_before_the_first_round_nothing_is_sent():
    server = Server(SPARSE)
    memory = server.tell(ClientState("a"), 0)
    assert server.sent == [(Broadcast(1, "a", None, ()), {
        "header": 38 + 1 + 4, "positions": 0, "scales": 0, "values": 0, "notes": 0, "catch-up": 0,
    })]  # fmt: skip
    assert memory.known is server.start


def test_what_clients_know_follows_the_target():
    """The difference is taken from what clients know, so what one message loses the next ones carry."""
    server = moved(Codec(VALUES["ternary"], 0.3), 3)
    for _ in range(60):
        server.state = replace(server.state, round=server.state.round + 1)
        server.state = advance(server.state, server.state.adapter, server.codec, SMALL)
    for name, t in server.state.adapter.items():
        torch.testing.assert_close(server.state.known[name], t, atol=1e-3, rtol=0)


def test_an_unbiased_downlink_carries_nothing_over():
    """Each message is right on average, so what clients know is what the server goes on from."""
    server = moved(Codec(VALUES["ternary"], 0.3, mask="random", compensation="unbiased"), 3)
    assert same(server.state.known, server.state.adapter)
    biased = moved(Codec(VALUES["ternary"], 0.3, mask="random"), 3)
    assert not same(biased.state.known, biased.state.adapter)


def test_an_exact_codec_sends_the_whole_adapter_and_keeps_no_log():
    server = moved(Codec(VALUES["fp32"]), 3)
    assert same(server.state.known, server.state.adapter)
    assert server.state.log == ()
    server.tell(ClientState("a", version=2), 2)
    told, parts = server.sent[-1]
    assert told.differences == ()
    assert parts == {
        "header": 38 + 1 + 4 + 5 + 11,
        "positions": 0,
        "scales": 0,
        "values": 4 * 24,
        "notes": 0,
        "catch-up": 0,
    }


# -- the shorter way -----------------------------------------------------------------------------------------


def test_one_missed_version_is_one_difference():
    server = moved(SPARSE, 5)
    assert broadcast(server.state, "a", 4, SMALL, server.start) == Broadcast(6, "a", None, server.state.log[-1:])


def test_the_shorter_of_differences_and_the_whole_adapter():
    """The whole adapter is four bytes a value; some differences of 15 % in two bits are shorter, many are not."""
    server = moved(SPARSE, 40, LARGE)
    whole = broadcast(replace(server.state, log=()), "a", 0, LARGE, server.start).state
    assert whole is not None
    ways = set()
    for version in range(39):
        told = broadcast(server.state, "a", version, LARGE, server.start)
        missed = server.state.log[-(40 - version) :]
        in_log = len(server.state.log) >= 40 - version
        shorter = in_log and sum(map(len, missed)) <= len(whole)
        assert told == Broadcast(41, "a", None, missed) if shorter else Broadcast(41, "a", whole, ())
        ways.add(shorter)
    assert ways == {True, False}


def test_the_log_is_bounded():
    for codec in (SPARSE, Codec(VALUES["bf16"], 0.9), Codec(VALUES["fp32"], 0.9)):
        server = Server(codec, LARGE)
        for _ in range(100):
            server.next()
            assert sum(map(len, server.state.log)) <= 4 * 800
        assert 1 <= len(server.state.log) < 100


def test_the_newest_difference_is_kept_however_long_it_is():
    """In a tiny adapter the names and lengths alone are more than the values."""
    tiny = {"m.A": torch.zeros(1, 2)}
    server = moved(Codec(VALUES["bf16"]), 3, tiny)
    assert len(server.state.log) == 1
    assert len(server.state.log[0]) > 4 * 2
    assert broadcast(server.state, "a", 2, tiny, server.start).differences == server.state.log


def test_the_whole_adapter_is_what_is_no_longer_as_it_began():
    tiny = {"m.A": torch.zeros(1, 8)}
    server = Server(SPARSE, tiny)
    moved_one = {"m.A": server.start["m.A"].clone()}
    moved_one["m.A"][0, 5] += 1
    state = replace(server.state, round=3, known=moved_one)
    told = broadcast(state, "a", 0, tiny, server.start)
    # names 6, positions 5 + 9 + 1 + 2, values 5 + 4
    assert told.state is not None
    assert len(told.state) == 6 + 17 + 9
    memory = receive(told, ClientState("a"), adding(SPARSE, tiny), tiny, server.start)
    assert same(memory.known, moved_one)
    assert not same(server.start, moved_one)


def test_a_client_that_has_the_newest_already_is_sent_nothing():
    server = moved(SPARSE, 5)
    assert broadcast(server.state, "a", 5, SMALL, server.start) == Broadcast(6, "a", None, ())


# -- the client's side ---------------------------------------------------------------------------------------


def test_differences_that_are_known_are_skipped():
    server = moved(SPARSE, 4, LARGE)
    memory = ClientState("a")
    for version in range(1, 5):
        memory = receive(
            Broadcast(version + 1, "a", None, server.state.log[:version]),
            memory,
            adding(SPARSE, LARGE),
            LARGE,
            LARGE_START,
        )
        assert memory.version == version
    assert bits(memory.known) == bits(server.state.known)
    ahead_of_some = Broadcast(5, "a", None, server.state.log[1:])
    at_three = receive(
        Broadcast(4, "a", None, server.state.log[:3]), ClientState("a"), adding(SPARSE, LARGE), LARGE, LARGE_START
    )
    assert bits(receive(ahead_of_some, at_three, adding(SPARSE, LARGE), LARGE, LARGE_START).known) == bits(
        server.state.known
    )


def test_a_client_that_the_message_does_not_reach():
    server = moved(SPARSE, 5, LARGE)
    told = Broadcast(6, "a", None, server.state.log[3:])  # from 3 to 5
    for version in (0, 2, 6):
        with pytest.raises(WireError, match=f"'a' knows version {version} .* what leads from 3 to 5"):
            receive(
                told, ClientState("a", known=LARGE_START, version=version), adding(SPARSE, LARGE), LARGE, LARGE_START
            )


def test_what_leads_from_the_beginning_serves_everybody():
    """A client that is ahead, of a server that lost its last rounds, begins anew: the server asked again for this."""
    server = moved(SPARSE, 3, LARGE)
    told = Broadcast(4, "a", None, server.state.log)
    for version in (0, 1, 3, 9):
        memory = receive(
            told, ClientState("a", known=normal(5, LARGE), version=version), adding(SPARSE, LARGE), LARGE, LARGE_START
        )
        assert (memory.version, bits(memory.known)) == (3, bits(server.state.known))


def test_the_whole_adapter_serves_everybody():
    server = moved(SPARSE, 5)
    told = broadcast(replace(server.state, log=()), "a", 0, SMALL, START)
    for version in (0, 4, 9):
        memory = receive(
            told, ClientState("a", steps=7, known=normal(5), version=version), adding(SPARSE, SMALL), SMALL, START
        )
        assert (memory.version, memory.steps, bits(memory.known)) == (5, 7, bits(server.state.known))


def test_memory_is_replaced_and_not_changed():
    server = moved(SPARSE, 2)
    memory = ClientState("a", version=1, known=normal(5))
    receive(Broadcast(3, "a", None, server.state.log[1:]), memory, adding(SPARSE, SMALL), SMALL, START)
    assert (memory.version, same(memory.known, normal(5))) == (1, True)
    assert same(START, normal(99))


# -- the ledger ----------------------------------------------------------------------------------------------


def test_what_a_client_missed_is_charged_as_catch_up():
    server = moved(SPARSE, 5, LARGE)
    log = server.state.log
    server.tell(ClientState("a", version=4, known=server.start), 4)
    server.tell(ClientState("b", version=2, known=server.start), 2)
    (_, punctual), (_, late) = server.sent
    assert punctual["catch-up"] == 0
    assert late["catch-up"] == len(log[2]) + len(log[3])
    assert late["header"] == punctual["header"] + 2 * 5  # two sections more
    assert all(late[part] == punctual[part] for part in ("positions", "scales", "values"))


def test_a_whole_adapter_in_place_of_differences_is_catch_up():
    server = moved(SPARSE, 40, LARGE)
    server.tell(ClientState("new"), 0)
    ((told, parts),) = server.sent
    assert told.state is not None
    assert parts["catch-up"] == len(told.state)
    assert parts["positions"] == parts["scales"] == parts["values"] == 0


def test_equal_differences_are_counted_each():
    """Rounds without any change are the same bytes each."""
    server = moved(SPARSE, 1)
    (body,) = server.state.log
    message = encode_broadcast(Broadcast(4, "a", None, (body, body, body)), SPARSE, SCHEMA)
    assert message.parts["catch-up"] == 2 * len(body)
    assert message.parts["values"] == 1
