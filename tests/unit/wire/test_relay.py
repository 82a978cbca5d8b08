"""A round's updates as one difference: by hand, there and back, damaged; and a whole version with a patch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import SMALL, normal, same
from capfl import adapter as algebra
from capfl.config.schema import CodecConfig
from capfl.errors import WireError
from capfl.types import Broadcast, ClientState, ServerState
from capfl.wire import adding, broadcast, encode_broadcast, led, receive, relay, schema_hash, up_codec
from capfl.wire.sections import parts

SCHEMA = schema_hash(SMALL, "base")
FP32 = up_codec(CodecConfig(values="fp32"), 0)


def test_by_hand():
    # tag 11, nine bytes: a weight of 10, and a body of five
    assert relay.pack([(10, b"hello"), (2, b"")]).hex() == "0b090000000a00000068656c6c6f0b0400000002000000"


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), st.binary(max_size=9)), min_size=1, max_size=4))
def test_there_and_back(bodies):
    back = [(weight, bytes(body)) for weight, body in relay.unpack(memoryview(relay.pack(bodies)))]
    assert back == bodies


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "there are none"),
        (relay.pack([(0, b"body")]), "has no weight"),
        (relay.pack([(1, b"")])[:-1], "is cut off"),
        (b"\x0b\x02\x00\x00\x00ab", "has no weight"),
        (b"\x01" + relay.pack([(1, b"body")])[1:], "section 1 where one of RELAYED was expected"),
    ],
)
def test_what_is_no_relay(data, message):
    with pytest.raises(WireError, match=message):
        list(relay.unpack(memoryview(data)))


def test_the_ledger_sees_what_is_relayed():
    bodies = [FP32.encode(normal(k, SMALL), SMALL, 1) for k in range(3)]
    counted = parts(relay.pack([(5, body) for body in bodies]))
    assert counted["values"] == 3 * 4 * 24
    assert counted["header"] == 3 * (5 + 4 + parts(bodies[0])["header"])
    assert sum(counted.values()) == len(relay.pack([(5, body) for body in bodies]))
    message = encode_broadcast(Broadcast(2, "a", None, (relay.pack([(5, b) for b in bodies]),)), FP32, SCHEMA)
    assert message.parts["values"] == 3 * 4 * 24
    assert sum(message.parts.values()) == len(message.blob)


def test_a_whole_version_has_its_patch():
    """Where elements differ from version 0, which has a patch of zeros."""
    start = SMALL | algebra.blank(SMALL)
    version = start | {"q.W": torch.arange(12.0).reshape(4, 3), "q.A": torch.ones(2, 3)}
    state = led(ServerState(1, version), version, b"x" * 999)
    state = led(ServerState(2, version, known=version, log=state.log), version, b"x" * 999)  # longer than the whole
    told = broadcast(state, "a", 0, start, start)
    assert told.state is not None
    memory = receive(told, ClientState("a"), adding(FP32, SMALL), start, start)
    assert same(memory.known, version)
    assert 4 * (11 + 6) < len(told.state) < 4 * (11 + 6) + 60


def test_the_shorter_of_differences_and_whole():
    """By what the whole would take, whether it is made to find out or not."""
    start = SMALL | algebra.blank(SMALL)
    version = {name: t + 1 for name, t in start.items()}
    size = algebra.size(start)
    for each, whole in ((2 * size - 10, False), (2 * size + 10, True)):
        log = (b"x" * each, b"y" * each)  # of two rounds, together about 4 bytes an element
        told = broadcast(ServerState(2, version, known=version, log=log), "a", 0, start, start)
        assert (told.state is not None) is whole


def test_the_log_is_cut_where_the_whole_is_shorter():
    version = SMALL | algebra.blank(SMALL)
    state = ServerState(1, version)
    room = 4 * algebra.size(version)
    for n in range(1, 6):
        state = led(state, version, b"x" * (room // 3))
        assert len(state.log) == min(n, 3)
    assert len(led(state, version, b"x" * (2 * room)).log) == 1  # the newest stays
