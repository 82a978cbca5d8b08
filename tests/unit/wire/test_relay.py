"""A round's updates as one difference: by hand, there and back, damaged; and a whole version with a patch."""

from __future__ import annotations

import pytest
import torch

from adapters import SMALL, normal, same
from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.types import Broadcast, ClientState, Group
from capfl.wire import Codec, adding, broadcast, encode_broadcast, receive, relay, schema_hash, with_version
from capfl.wire.sections import parts
from capfl.wire.values import VALUES

FP32 = Codec(VALUES["fp32"])
START = SMALL | algebra.blank(SMALL)  # a version has a patch, of zeros at first


def test_by_hand():
    # tag 11, nine bytes: a weight of 10, and a body of five
    packed = relay.pack([(10, b"hello"), (2**32 - 1, b"")])
    assert packed.hex() == "0b090000000a00000068656c6c6f0b04000000ffffffff"
    assert [(w, bytes(body)) for w, body in relay.unpack(memoryview(packed))] == [(10, b"hello"), (2**32 - 1, b"")]


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
    bodies = [FP32.encode(normal(k), SMALL, 1) for k in range(3)]
    packed = relay.pack([(5, body) for body in bodies])
    header = 3 * (5 + 4 + parts(bodies[0])["header"])
    assert parts(packed) == dict.fromkeys(parts(b""), 0) | {"header": header, "values": 3 * 4 * 24}
    message = encode_broadcast(Broadcast(2, "a", None, (packed,)), FP32, schema_hash(SMALL, "base"))
    assert message.parts["values"] == 3 * 4 * 24
    assert sum(message.parts.values()) == len(message.blob)


def test_a_whole_version_has_its_patch():
    version = START | {"q.W": torch.arange(12.0).reshape(4, 3), "q.A": torch.ones(2, 3)}
    told = broadcast(Group(version, version, 2 * (b"x" * 999,)), 2, "a", 0, START, START)  # longer than the whole
    assert told.state is not None
    assert same(receive(told, ClientState("a"), adding(FP32, SMALL), START, START).known, version)
    assert 4 * (11 + 6) < len(told.state) < 4 * (11 + 6) + 60


def test_the_log_is_cut_where_the_whole_is_shorter():
    version = {name: t + 1 for name, t in START.items()}
    group, size = Group(version, version), algebra.size(version)
    for n in range(1, 6):
        group = with_version(group, version, b"x" * (4 * size // 3))
        assert len(group.log) == min(n, 3)
    assert len(with_version(group, version, b"x" * (8 * size)).log) == 1  # the newest stays
    for each, whole in ((2 * size - 10, False), (2 * size + 10, True)):  # of two rounds, about 4 bytes an element
        told = broadcast(Group(version, version, 2 * (b"x" * each,)), 2, "a", 0, START, START)
        assert (told.state is not None) is whole
