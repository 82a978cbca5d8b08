"""Messages as bytes: exact sizes, exact values, and WireError for whatever is not a message."""

from __future__ import annotations

import contextlib
import struct
import zlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from capfl.errors import ConfigError, WireError
from capfl.types import Adapter, Broadcast, Update
from capfl.wire import CODECS, codec, decode_broadcast, decode_update, encode_broadcast, encode_update
from capfl.wire.header import schema_hash

TEMPLATE = {
    "q.A": torch.zeros(1, 3),
    "q.B": torch.zeros(2, 1),
    "v.A": torch.zeros(1, 3),
    "v.B": torch.zeros(2, 1),
}
VALUES = {
    "q.A": torch.tensor([[1.0, -2.0, 0.5]]),
    "q.B": torch.tensor([[0.1], [0.2]]),
    "v.A": torch.tensor([[1e-8, 3.14159, -65504.0]]),
    "v.B": torch.tensor([[0.0], [-1.0]]),
}
FP32, BF16 = codec("fp32"), codec("bf16")
UPDATE = Update(3, "site", VALUES, n_train=12, steps=7, loss=1.25)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def same(a: Adapter, b: Adapter) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def resealed(blob: bytes, at: int, new: bytes) -> bytes:
    """The message with some bytes replaced and a checksum that fits."""
    body = blob[:at] + new + blob[at + len(new) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


# -- there and back ----------------------------------------------------------------------------------


@given(st.lists(finite, min_size=5, max_size=5), st.integers(0, 2**32 - 1), st.text(max_size=9))
def test_fp32_comes_back_exactly(values, round, client):
    adapter = {"q.A": torch.tensor([values[:3]]), "q.B": torch.tensor(values[3:]).reshape(2, 1)}
    got = decode_broadcast(encode_broadcast(Broadcast(round, client, adapter), FP32, TEMPLATE), FP32, TEMPLATE)
    assert (got.round, got.client) == (round, client)
    assert same(got.adapter, adapter)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3))
def test_bf16_comes_back_rounded_to_bfloat16(values):
    adapter = {"v.A": torch.tensor([values])}
    got = decode_broadcast(encode_broadcast(Broadcast(1, "c", adapter), BF16, TEMPLATE), BF16, TEMPLATE)
    assert same(got.adapter, {"v.A": adapter["v.A"].to(torch.bfloat16).to(torch.float32)})
    again = encode_broadcast(got, BF16, TEMPLATE)
    assert same(decode_broadcast(again, BF16, TEMPLATE).adapter, got.adapter)  # rounding twice is rounding once


def test_bf16_by_hand():
    adapter = {"q.A": torch.tensor([[1.0, 0.1, 1.00390625]])}  # the last is half way, and rounds to even
    blob = encode_broadcast(Broadcast(1, "c", adapter), BF16, TEMPLATE)
    assert decode_broadcast(blob, BF16, TEMPLATE).adapter["q.A"].tolist() == [[1.0, 0.10009765625, 1.0]]


@pytest.mark.parametrize("name", CODECS)
def test_an_update_comes_back_with_all_its_numbers(name):
    got = decode_update(encode_update(UPDATE, codec(name), TEMPLATE), codec(name), TEMPLATE)
    assert (got.round, got.client, got.n_train, got.steps, got.loss) == (3, "site", 12, 7, 1.25)
    assert list(got.adapter) == list(TEMPLATE)


@given(st.sets(st.sampled_from(list(TEMPLATE))))
def test_any_part_of_an_adapter_comes_back_with_its_names(names):
    part = {name: VALUES[name] for name in TEMPLATE if name in names}
    blob = encode_broadcast(Broadcast(1, "c", part), FP32, TEMPLATE)
    assert same(decode_broadcast(blob, FP32, TEMPLATE).adapter, part)
    assert len(blob) == 38 + 1 + 1 + 4 * sum(t.numel() for t in part.values()) + 4


def test_the_order_of_the_names_is_the_templates():
    shuffled = {name: VALUES[name] for name in reversed(VALUES)}
    assert encode_broadcast(Broadcast(1, "c", shuffled), FP32, TEMPLATE) == encode_broadcast(
        Broadcast(1, "c", VALUES), FP32, TEMPLATE
    )


def test_decoded_tensors_are_float32_of_their_own():
    blob = encode_broadcast(Broadcast(1, "c", VALUES), FP32, TEMPLATE)
    first, second = (decode_broadcast(blob, FP32, TEMPLATE).adapter for _ in range(2))
    first["q.A"] += 1
    assert torch.equal(second["q.A"], VALUES["q.A"])
    assert {t.dtype for t in first.values()} == {torch.float32}


def test_encoding_takes_tensors_of_any_layout_and_leaves_them_alone():
    wide = torch.tensor([[1.0, 9.0, -2.0, 9.0, 0.5, 9.0]], requires_grad=True)
    view = wide[:, ::2]  # not contiguous, and part of a graph
    blob = encode_broadcast(Broadcast(1, "c", {"q.A": view}), FP32, TEMPLATE)
    assert decode_broadcast(blob, FP32, TEMPLATE).adapter["q.A"].tolist() == [[1.0, -2.0, 0.5]]
    assert wide.tolist() == [[1.0, 9.0, -2.0, 9.0, 0.5, 9.0]]


# -- the bytes themselves ------------------------------------------------------------------------------

GOLDEN_BROADCAST = (
    "4350464c" "01" "01" "01" "00" "05000000" "0bb6acbf2dae2082" "00000000" "00000000" "0000000000000000" "0300"
    "c3a931" "80" "0000803f" "000000c0" "0000003f" "c549d4af"
)  # fmt: skip
GOLDEN_UPDATE = (
    "4350464c" "01" "02" "02" "00" "03000000" "0bb6acbf2dae2082" "0c000000" "07000000" "000000000000f43f" "0400"
    "73697465" "f0" "803f00c0003f" "cd3d4d3e" "2c32494080c7" "000080bf" "4b61b64c"
)  # fmt: skip


def test_golden_broadcast():
    """A change of this is a change of the format: raise VERSION with it."""
    message = Broadcast(5, "é1", {"q.A": VALUES["q.A"]})
    assert encode_broadcast(message, FP32, TEMPLATE).hex() == GOLDEN_BROADCAST


def test_golden_update():
    blob = encode_update(UPDATE, BF16, TEMPLATE)
    assert blob.hex() == GOLDEN_UPDATE
    got = decode_update(bytes.fromhex(GOLDEN_UPDATE), BF16, TEMPLATE)
    assert (got.client, got.loss, got.adapter["q.A"].tolist()) == ("site", 1.25, [[1.0, -2.0, 0.5]])


def test_the_layout_is_the_documented_one():
    blob = encode_update(UPDATE, FP32, TEMPLATE)
    magic, version, kind, values, reserved, round = struct.unpack_from("<4sBBBBI", blob, 0)
    assert (magic, version, kind, values, reserved, round) == (b"CPFL", 1, 2, 1, 0, 3)
    assert blob[12:20] == schema_hash(TEMPLATE)
    assert struct.unpack_from("<IIdH", blob, 20) == (12, 7, 1.25, 4)
    assert blob[38:42] == b"site"
    assert blob[42] == 0b11110000  # all four tensors, one bit each
    assert struct.unpack_from("<3f", blob, 43) == (1.0, -2.0, 0.5)
    assert struct.unpack_from("<I", blob, len(blob) - 4)[0] == zlib.crc32(blob[:-4])


def test_a_broadcast_has_zeros_where_an_update_has_numbers():
    assert encode_broadcast(Broadcast(1, "c", VALUES), FP32, TEMPLATE)[20:36] == bytes(16)


@pytest.mark.parametrize(("name", "width"), [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize(("client", "length"), [("", 0), ("ab", 2), ("é", 2)])
def test_sizes(name, width, client, length):
    down = encode_broadcast(Broadcast(1, client, VALUES), codec(name), TEMPLATE)
    up = encode_update(Update(1, client, VALUES, 1, 1, 1.0), codec(name), TEMPLATE)
    assert len(down) == len(up) == 38 + length + 1 + 10 * width + 4
    empty = encode_update(Update(1, client, {}, 1, 1, 1.0), codec(name), TEMPLATE)
    assert len(empty) == 38 + length + 1 + 4


def test_nine_tensors_need_two_bytes_of_list():
    nine = {f"m{i}.A": torch.zeros(1, 1) for i in range(9)}
    blob = encode_broadcast(Broadcast(1, "", {"m8.A": torch.ones(1, 1)}), FP32, nine)
    assert blob[38:40] == bytes([0, 0b10000000])
    assert decode_broadcast(blob, FP32, nine).adapter == {"m8.A": torch.ones(1, 1)}


def test_the_schema_tells_names_shapes_and_order_apart():
    one = {"q.A": torch.zeros(1, 3), "q.B": torch.zeros(2, 1)}
    others = [
        {"k.A": torch.zeros(1, 3), "q.B": torch.zeros(2, 1)},
        {"q.A": torch.zeros(2, 3), "q.B": torch.zeros(2, 2)},
        {"q.A": torch.zeros(3, 1), "q.B": torch.zeros(2, 1)},
        {"q.B": torch.zeros(2, 1), "q.A": torch.zeros(1, 3)},
        {"q.A": torch.zeros(1, 3)},
    ]
    assert len({schema_hash(t) for t in [one, *others]}) == 6
    assert schema_hash(one) == schema_hash({name: t + 1 for name, t in one.items()})  # values do not matter


# -- what is refused -------------------------------------------------------------------------------------


def test_a_message_for_another_adapter():
    blob = encode_broadcast(Broadcast(1, "c", VALUES), FP32, TEMPLATE)
    other = {**TEMPLATE, "v.B": torch.zeros(3, 1)}
    with pytest.raises(WireError, match="another adapter"):
        decode_broadcast(blob, FP32, other)


def test_a_message_of_the_other_kind():
    with pytest.raises(WireError, match="kind 2 where kind 1"):
        decode_broadcast(encode_update(UPDATE, FP32, TEMPLATE), FP32, TEMPLATE)
    with pytest.raises(WireError, match="kind 1 where kind 2"):
        decode_update(encode_broadcast(Broadcast(1, "c", VALUES), FP32, TEMPLATE), FP32, TEMPLATE)


def test_a_message_of_the_other_codec():
    with pytest.raises(WireError, match=r"codec tag 1, expected 2 \(bf16\)"):
        decode_update(encode_update(UPDATE, FP32, TEMPLATE), BF16, TEMPLATE)


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"HTTP", "not a capfl message: it starts with b'HTTP'"),
        (4, b"\x02", "format 2, this capfl reads 1"),
        (7, b"\x01", "format"),
        (5, b"\x03", "kind 3"),
        (6, b"\x09", "codec tag 9"),
        (12, bytes(8), "another adapter"),
        (20, bytes(4), "no training items"),
        (28, struct.pack("<d", float("nan")), "loss nan"),
        (28, struct.pack("<d", float("inf")), "loss inf"),
        (36, b"\xff\xff", "client id of 65535 bytes does not fit"),
        (36, b"\x03\x00", "names more than the adapter has"),  # the last letter is read as the list
        (36, b"\x50\x00", "client id of 80 bytes does not fit"),
        (38, b"\xff", "client id is not UTF-8"),
        (42, b"\x70", "body has 41 bytes, 3 tensors need 29"),
        (42, b"\xf8", "names more than the adapter has"),
        (43, struct.pack("<f", float("nan")), "'q.A' has values that are not finite"),
        (43, struct.pack("<f", float("-inf")), "'q.A' has values that are not finite"),
    ],
)
def test_a_field_that_is_wrong_although_the_checksum_is_right(at, new, message):
    with pytest.raises(WireError) as caught:
        decode_update(resealed(encode_update(UPDATE, FP32, TEMPLATE), at, new), FP32, TEMPLATE)
    assert message in str(caught.value)


def test_what_overflows_in_bf16_is_refused_on_arrival():
    blob = encode_broadcast(Broadcast(1, "c", {"q.A": torch.full((1, 3), 3.4e38)}), BF16, TEMPLATE)
    with pytest.raises(WireError, match="not finite"):
        decode_broadcast(blob, BF16, TEMPLATE)


def test_an_update_of_a_client_without_items():
    with pytest.raises(WireError, match="no training items"):
        decode_update(encode_update(Update(1, "c", VALUES, 0, 1, 1.0), FP32, TEMPLATE), FP32, TEMPLATE)


def test_encoding_refuses_what_the_template_does_not_have():
    for adapter, message in [
        ({"k.A": torch.zeros(1, 3)}, "'k.A' is not in the adapter"),
        ({"q.A": torch.zeros(3, 1)}, r"'q.A' has shape \(3, 1\), expected \(1, 3\)"),
        ({"q.A": torch.zeros(3)}, r"'q.A' has shape \(3,\)"),
    ]:
        with pytest.raises(WireError, match=message):
            encode_broadcast(Broadcast(1, "c", adapter), FP32, TEMPLATE)


def test_unknown_codec_lists_the_choices():
    with pytest.raises(ConfigError, match="unknown codec 'int8'; choose from fp32, bf16"):
        codec("int8")


VALID = encode_update(UPDATE, FP32, TEMPLATE)


@pytest.mark.parametrize("length", range(len(VALID)))
def test_every_beginning_of_a_message_is_refused(length):
    with pytest.raises(WireError):
        decode_update(VALID[:length], FP32, TEMPLATE)


@given(st.binary(min_size=1, max_size=20))
def test_a_message_with_something_behind_it_is_refused(extra):
    with pytest.raises(WireError):
        decode_update(VALID + extra, FP32, TEMPLATE)


@given(st.integers(0, 8 * len(VALID) - 1))
def test_every_flipped_bit_is_noticed(bit):
    damaged = bytearray(VALID)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        decode_update(bytes(damaged), FP32, TEMPLATE)


@given(st.binary(max_size=120))
@example(b"CPFL" + bytes(38))
def test_random_bytes_are_refused(blob):
    for name in CODECS:
        for decode in (decode_broadcast, decode_update):
            with pytest.raises(WireError):
                decode(blob, codec(name), TEMPLATE)


@given(st.integers(0, len(VALID) - 5), st.binary(min_size=1, max_size=12))
def test_a_forged_message_decodes_or_raises_wire_error_and_nothing_else(at, new):
    """With a checksum that fits, so that every later check is reached."""
    blob = resealed(VALID, at, new[: len(VALID) - 4 - at])
    assert len(blob) == len(VALID)
    try:
        got = decode_update(blob, FP32, TEMPLATE)
    except WireError:
        return
    assert got.adapter.keys() <= TEMPLATE.keys()
    assert got.n_train > 0
    assert all(torch.isfinite(t).all() and t.shape == TEMPLATE[name].shape for name, t in got.adapter.items())


@given(st.binary(max_size=80))
def test_any_body_under_a_right_header_decodes_or_raises_wire_error(body):
    whole = VALID[:42] + body
    with contextlib.suppress(WireError):
        decode_update(whole + struct.pack("<I", zlib.crc32(whole)), FP32, TEMPLATE)
