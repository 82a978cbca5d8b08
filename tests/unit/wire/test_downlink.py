"""The downlink: whatever a client has missed, it ends up with just what the server says that it knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import CODECS, SMALL, normal, same
from capfl import adapter as algebra
from capfl.errors import VersionError, WireError
from capfl.types import EVERYBODY, Adapter, Broadcast, ClientState, Group, ServerState
from capfl.wire import (
    Codec,
    advance,
    broadcast,
    decode_broadcast,
    down_codec,
    encode_broadcast,
    is_relayed,
    nothing,
    receive,
    relay,
    relayed,
    schema_hash,
    with_version,
)
from capfl.wire.sections import parts
from capfl.wire.values import VALUES

SCHEMA = schema_hash(SMALL, "base")
SPARSE = Codec(VALUES["ternary"], 0.15)
LARGE = {f"{i}.A": torch.zeros(4, 50) for i in range(4)}  # so large that some differences are shorter than it is
TINY = {"m.A": torch.zeros(1, 8)}


class Server:
    """A server whose target moves at random. ``parts`` are those of the last message."""

    def __init__(self, codec: Codec = SPARSE, rounds: int = 0, template: Adapter = SMALL) -> None:
        self.codec, self.template, self.start = codec, template, normal(99, template)
        self.group, self.round = Group(self.start, self.start), 0
        self.parts: dict[str, int] = {}
        for _ in range(rounds):
            self.next()

    @property
    def known(self) -> Adapter:
        return self.group.known

    @property
    def log(self) -> tuple[bytes, ...]:
        return self.group.log

    def next(self, importance: np.ndarray | None = None) -> None:
        drawn = normal(self.round + 1, self.template)
        self.to({n: t + drawn[n] for n, t in self.group.adapter.items()}, importance)

    def to(self, target: Adapter, importance: np.ndarray | None = None) -> None:
        self.round += 1
        group = replace(self.group, adapter=target)
        self.group = advance(group, target, self.round, self.codec, self.template, importance)

    def passes(self, change: Adapter) -> bytes:
        """The next version is what a client's change alone leads to, as it came. Returns what the client has sent."""
        self.round += 1
        body = relay([(10, self.codec.encode(change, self.template, self.round))])
        self.group = with_version(self.group, self.lead(self.known, body, self.round), body, nothing(self.template))
        return body

    def told(self, version: int, with_log: bool = True, own: int = 0) -> Broadcast:
        """What a client ``a`` that knows a version is sent; its update alone has led to the version ``own``."""
        group = self.group if with_log else replace(self.group, log=())
        state = ServerState(self.round, {EVERYBODY: group}, versions={"a": version}, version=self.round, own={"a": own})
        return broadcast(state, "a", self.template, nothing(self.template))

    def receive(self, told: Broadcast, memory: ClientState, missed: bool = False) -> ClientState:
        """By way of the bytes."""
        message = encode_broadcast(told, self.codec, SCHEMA, missed)
        assert sum(message.parts.values()) == len(message.blob)
        self.parts = message.parts
        decoded = decode_broadcast(message.blob, self.codec, SCHEMA)
        assert decoded == told
        return receive(decoded, memory, self.lead, self.template, self.start)

    def lead(self, version: Adapter, difference: bytes, number: int) -> Adapter:
        if is_relayed(difference):
            ((_, body),) = relayed(difference)
            return self.lead(version, bytes(body), number)
        return algebra.add(version, self.codec.decode(memoryview(difference), self.template, number))


def bits(adapter: Adapter) -> bytes:
    return b"".join(t.numpy().tobytes() for t in adapter.values())


# -- every client ends where the server thinks it is -------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=4)
@given(
    template=st.sampled_from([SMALL, LARGE]),  # of which whole adapters are sent, or differences
    visits=st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=12),
    lost=st.integers(0, 11),
)
def test_present_absent_new_and_after_a_lost_disk(name, template, visits, lost):
    """``a`` takes part in every round, the others now and then; before one round ``b`` loses its disk."""
    server = Server(down_codec(CODECS[name], 0), 0, template)
    memories, versions = {}, {}
    for n, visited in enumerate(visits):
        for client in sorted(visited | {"a"}):
            memory = memories.get(client, ClientState("a"))
            if client == "b" and n == lost and "b" in memories:
                memory = ClientState("a")
                told = server.told(versions["b"])
                if told.state is None and versions["b"]:  # it does not serve, so it is noticed
                    with pytest.raises(VersionError, match="'a' knows version 0"):
                        server.receive(told, memory)
                versions["b"] = 0  # as after any failure
            memory = server.receive(server.told(versions.get(client, 0)), memory)
            assert bits(memory.known) == bits(server.known)
            assert memory.version == server.round
            memories[client] = replace(memory, known={}) if server.codec.exact else memory
            versions[client] = server.round
        server.next()


def test_an_unbiased_downlink_carries_nothing_over():
    """Each message is right on average, so what clients know is what the server goes on from."""
    server = Server(Codec(VALUES["ternary"], 0.3, mask="random", compensation="unbiased"), 3)
    assert same(server.known, server.group.adapter)
    biased = Server(Codec(VALUES["ternary"], 0.3, mask="random"), 3)
    assert not same(biased.known, biased.group.adapter)


def test_an_exact_codec_sends_the_whole_adapter_and_keeps_no_log():
    server = Server(Codec(VALUES["fp32"]), 3)
    assert same(server.known, server.group.adapter)
    assert server.log == server.told(2).differences == ()
    server.receive(server.told(2), ClientState("a", version=2))
    assert server.parts == dict.fromkeys(server.parts, 0) | {"header": 38 + 1 + 4 + 5 + 11, "values": 4 * 24}
    assert server.told(3) == Broadcast(4, "a", 3, None, ())  # nothing is missing


def test_a_difference_has_the_factors_that_moved():
    """What is drawn by importance depends on which tensors a message has, and clients had all of a factor in theirs."""
    codec, importance = Codec(VALUES["fp32"], 0.3, "random", compensation="unbiased", seed=1), np.array([4.0, 4, 1, 1])
    server = Server(codec)
    sent = codec.decode(memoryview(codec.encode(algebra.factor(normal(1), "B"), SMALL, 1, importance)), SMALL, 1)
    target = server.start | {name: server.start[name] + t for name, t in sent.items()}
    server.to(target | {"q.B": server.start["q.B"]}, importance)
    torch.testing.assert_close(server.known["v.B"], target["v.B"])  # not scaled again
    assert torch.equal(server.known["q.A"], server.start["q.A"])


# -- differences, or the whole adapter ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CODECS if not down_codec(CODECS[name], 0).exact])
def test_a_group_that_nobody_has_trained_costs_nothing(name, monkeypatch):
    """Of thousands of groups of few clients most have no update in a turn: nothing is computed for them."""
    server = Server(down_codec(CODECS[name], 0))
    before = server.group
    monkeypatch.setattr(algebra, "subtract", lambda a, b: pytest.fail("it was compared"))
    server.to(before.adapter)
    assert all(t is before.known[name] for name, t in server.known.items())
    assert server.group == replace(before, idle=1)
    monkeypatch.undo()
    copied = {name: t.clone() for name, t in before.adapter.items()}
    assert advance(before, copied, 1, server.codec, SMALL) == server.group  # nor if it is compared


def test_differences_are_kept_as_long_as_the_whole_adapter_is_longer():
    """The whole adapter is four bytes a value, and differences of 15 % in two bits are shorter for some time."""
    server = Server(SPARSE, 40, LARGE)
    whole, n = server.told(0, with_log=False).state, len(server.log)
    assert whole is not None
    assert sum(map(len, server.log)) <= 4 * algebra.size(LARGE) < sum(map(len, server.log)) + len(server.log[0]) + 20
    for version in range(41):
        missed = server.log[n - (40 - version) :]
        expected = (None, missed) if 40 - version <= n else (whole, ())
        assert server.told(version) == Broadcast(41, "a", 40, *expected)
    memory = server.receive(server.told(0), ClientState("a"), missed=True)  # in place of differences it is catch-up
    assert bits(memory.known) == bits(server.known)
    assert server.parts == dict.fromkeys(server.parts, 0) | {"header": 38 + 1 + 4 + 5, "catch-up": len(whole)}
    assert len(with_version(server.group, server.known, bytes(10**4), b"").log) == 1  # the newest stays


# -- the client's side -------------------------------------------------------------------------------------


def test_which_versions_a_difference_serves():
    server = Server(SPARSE, 5, LARGE)
    at = {0: ClientState("a")}
    for version in range(1, 6):  # those that are known are skipped
        at[version] = server.receive(Broadcast(version + 1, "a", version, None, server.log[:version]), at[version - 1])
        assert at[version].version == version
    told = Broadcast(6, "a", 5, None, server.log[3:])  # from 3 to 5
    for version in (3, 4, 5):
        assert bits(server.receive(told, at[version]).known) == bits(server.known)
    assert at[3].version == 3  # a memory is replaced and not changed
    for version in (0, 2, 6):
        with pytest.raises(VersionError, match=f"'a' knows version {version} .* what leads from 3 to 5"):
            server.receive(told, replace(at[2], version=version))


def test_what_leads_from_the_beginning_and_the_whole_adapter_serve_everybody():
    """A client that is ahead, of a server that lost its last rounds, begins anew: the server asked again for this."""
    server = Server(SPARSE, 3, LARGE)
    for told in (Broadcast(4, "a", 3, None, server.log), server.told(0, with_log=False)):
        for version in (0, 1, 3, 9):
            memory = server.receive(told, ClientState("a", steps=7, known=normal(5, LARGE), version=version))
            assert (memory.version, memory.steps, bits(memory.known)) == (3, 7, bits(server.known))


def test_a_whole_adapter_says_no_ranks():
    server, codec = Server(), Codec(VALUES["fp32"], 0.25, mask="random")
    body = codec.encode(normal(0), SMALL, 1, np.array([4.0, 0, 2, 1]))
    with pytest.raises(WireError, match="nothing is drawn by that"):
        server.receive(Broadcast(2, "a", 1, body, ()), ClientState("a"))


def test_what_a_client_missed_is_charged_as_catch_up():
    server = Server(SPARSE, 5, LARGE)
    server.receive(server.told(4), ClientState("a", version=4, known=server.start))
    punctual = server.parts
    server.receive(server.told(2), ClientState("a", version=2, known=server.start), missed=True)
    assert punctual["catch-up"] == 0
    more = {"catch-up": len(server.log[2]) + len(server.log[3]), "header": punctual["header"] + 2 * 5}
    assert server.parts == punctual | more
    (body,) = Server(SPARSE, 1).log  # equal differences are counted each
    told = Broadcast(4, "a", 3, None, 3 * (body,))
    assert encode_broadcast(told, SPARSE, SCHEMA, missed=True).parts["catch-up"] == 2 * len(body)
    several = encode_broadcast(told, SPARSE, SCHEMA).parts  # of the turns of one round: nothing was missed
    assert (several["catch-up"], several["values"]) == (0, 3 * parts(body)["values"])


# -- a client whose own update became the next version -------------------------------------------------------------


def test_a_client_whose_update_became_the_next_version_applies_it_itself():
    """From version 2 to 3 by its own update, which it is not sent again; it ends with the bits of all the others."""
    server = Server(SPARSE, 2, LARGE)
    memory = server.receive(server.told(0), ClientState("a"))
    other = memory
    memory = replace(memory, sent=server.passes(normal(7, LARGE)))
    for later in (0, 1):
        for _ in range(later):
            server.next()
        told, plain = server.told(2, own=3), server.told(2)
        assert told.differences == (b"", *plain.differences[1:])
        own, theirs = server.receive(told, memory), server.receive(plain, other)
        assert bits(own.known) == bits(theirs.known) == bits(server.known)
        assert (own.version, own.sent) == (3 + later, b"")  # it is of no more use
        assert server.told(1, own=3) == server.told(1)  # the version that it knows is not the one before
    assert server.receive(server.told(4, own=3), replace(own, sent=b"kept")).sent == b"kept"  # nothing new, yet


def test_who_does_not_have_the_update_that_became_the_next_version_says_so():
    """It is asked again, with everything."""
    server = Server(SPARSE, 2, LARGE)
    memory = server.receive(server.told(0), ClientState("a"))
    sent = server.passes(normal(7, LARGE))
    server.next()
    told = server.told(2, own=3)
    assert told.differences == (b"", server.log[-1])
    for lost, said in (
        (memory, "was told to apply an update of its own that it does not have"),
        (replace(memory, version=1, sent=sent), "knows version 1"),
        (replace(memory, version=0, sent=sent), "knows version 0"),
    ):
        with pytest.raises(VersionError, match=f"'a' {said}"):
            server.receive(told, lost)
    with pytest.raises(VersionError, match="update of its own"):  # in any other place than the first
        server.receive(replace(told, differences=(b"", b"")), replace(memory, sent=sent))
    ahead = ClientState("a", version=9, sent=sent)  # what it has sent led to version 10 of something else
    with pytest.raises(VersionError, match=r"'a' (was told to apply an update of its own|knows version 9)"):
        server.receive(Broadcast(5, "a", 4, None, (b"", *server.log[1:])), ahead)
    whole = server.told(0, with_log=False)
    assert bits(server.receive(whole, replace(memory, sent=b"x")).known) == bits(server.known)


# -- relayed updates ---------------------------------------------------------------------------------------


def test_a_relay_by_hand():
    # tag 11, nine bytes: a weight of 10, and a body of five
    packed = relay([(10, b"hello"), (2**32 - 1, b"")])
    assert packed.hex() == "0b090000000a00000068656c6c6f0b04000000ffffffff"
    assert [(w, bytes(body)) for w, body in relayed(packed)] == [(10, b"hello"), (2**32 - 1, b"")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (relay([(0, b"body")]), "has no weight"),
        (relay([(1, b"")])[:-1], "is cut off"),
        (b"\x0b\x02\x00\x00\x00ab", "has no weight"),
        (b"\x01" + relay([(1, b"body")])[1:], "section 1 where one of RELAYED was expected"),
    ],
)
def test_what_is_no_relay(data, message):
    with pytest.raises(WireError, match=message):
        list(relayed(data))


def test_a_whole_version_has_its_patch():
    start = SMALL | algebra.blank(SMALL)  # a version of a method that relays has a patch, of zeros at first
    version = start | {"q.W": torch.arange(12.0).reshape(4, 3), "q.A": torch.ones(2, 3)}
    told = broadcast(ServerState(2, {EVERYBODY: Group(version, version)}, version=2), "a", start, nothing(start))
    assert told.state is not None
    assert same(receive(told, ClientState("a"), lambda *_: {}, start, start).known, version)
    assert len(told.state) < 4 * (11 + 6) + 60  # zeros are not sent
