"""Messages: pinned bytes, every field, and WireError for whatever is not a message."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from adapters import resealed, same
from capfl.errors import WireError
from capfl.types import Adapter, Broadcast, Introduction, Update
from capfl.wire import (
    Codec,
    Records,
    decode_broadcast,
    decode_introduction,
    decode_update,
    encode_broadcast,
    encode_introduction,
    encode_update,
    relay,
    round_of,
    schema_hash,
)
from capfl.wire.records import vector
from capfl.wire.sections import Section, write
from capfl.wire.values import VALUES

TEMPLATE = {"q.A": torch.zeros(1, 4), "q.B": torch.zeros(2, 1)}
CHANGE = {"q.A": torch.tensor([[1.0, 2.0, -3.0, 5.0]]), "q.B": torch.tensor([[0.5], [-0.25]])}
SCHEMA = schema_hash(TEMPLATE, "base")
FP32 = Codec(VALUES["fp32"])
TERNARY = Codec(VALUES["ternary"], 0.5)
NUMBER = 3  # of the version that comes after the one that updates began with


def update(codec: Codec = FP32, adapter: Adapter = CHANGE, **fields: object) -> bytes:
    """Round 3, client ``site``, 12 items, 7 steps, loss 1.25."""
    plain = {"round": 3, "client": "site", "adapter": {}, "n_train": 12, "steps": 7, "loss": 1.25}
    message = Update(**plain | fields)  # type: ignore[arg-type]
    return encode_update(message, codec.encode(adapter, TEMPLATE, NUMBER), codec, SCHEMA)


def read(blob: bytes, codec: Codec = FP32) -> Update:
    return decode_update(blob, codec, SCHEMA, TEMPLATE, NUMBER)[0]


# -- the bytes themselves: a change of these is a change of the format: raise VERSION with it ------------------

HEADER = "030000001255d4442ec7c09f0c00000007000000000000000000f43f040073697465"  # from the round on
NAMES = "0101000000c0"
LEVELS = "0306000000f8030594f926"  # from 1 to 5, and from 0.25 to 0.5

GOLDEN_UPDATES = {
    "fp32": (FP32, "01", NAMES + "04" "18000000" "0000803f" "00000040" "000040c0" "0000a040" "0000003f" "000080be",
             "27467e48", ([1, 2, -3, 5], [0.5, -0.25])),
    "bf16": (Codec(VALUES["bf16"]), "02", NAMES + "04" "0c000000" "803f" "0040" "40c0" "a040" "003f" "80be",
             "8ab7e4ac", ([1, 2, -3, 5], [0.5, -0.25])),
    "ternary, sparse": (TERNARY, "03", NAMES + "02" "06000000" "03000000" "00" "38"
                        "03" "05000000" "0402" "04" "40" "70" "04" "01000000" "80",
                        "dae63e08", ([0, 0, -4, 4], [0.5, 0])),
    "8bit": (Codec(VALUES["8bit"]), "04", NAMES + LEVELS + "04" "08000000" "24" "ff" "008207ffe000",
             "a7ea67f6", ([1.015625, 2.015625, -3.015625, 4.984375], [0.4990234375, -0.2509765625])),
    "4bit": (Codec(VALUES["4bit"]), "05", NAMES + LEVELS + "04" "05000000" "24" "ff" "0a7e00",
             "cf71f7b3", ([1.25, 2.25, -3.25, 4.75], [0.484375, -0.265625])),
    "3bit": (Codec(VALUES["3bit"]), "06", NAMES + LEVELS + "04" "04000000" "24" "ff" "1bc0",
             "0a0a962c", ([1.5, 2.5, -3.5, 4.5], [0.46875, -0.28125])),
    "2bit, random": (Codec(VALUES["2bit"], 0.5, mask="random", seed=55), "07",
                     NAMES + "03" "06000000" "000405547e0e" "04" "03000000" "50" "ff" "60",
                     "abb0d4d7", ([0, 2.25, -2.75, 0], [0.4375, -0.3125])),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN_UPDATES)
def test_golden_updates(name):
    codec, tag, body, checksum, (a, b) = GOLDEN_UPDATES[name]
    golden = "4350464c0402" + tag + "00" + HEADER + body + checksum
    assert update(codec).hex() == golden
    got = read(bytes.fromhex(golden), codec)
    assert (got.round, got.client, got.n_train, got.steps, got.loss) == (3, "site", 12, 7, 1.25)
    assert same(got.adapter, {"q.A": torch.tensor([a]).float(), "q.B": torch.tensor([b]).T.float()})


PAIR = {"q.A": torch.zeros(2, 3), "q.B": torch.zeros(2, 2)}
DRAWN = Codec(VALUES["ternary"], 0.5, mask="random", compensation="unbiased", seed=55)
GOLDEN_RANKS = (
    "4350464c04020300" "03000000" "cc4579142ce464b6" "0c000000" "07000000" "000000000000f43f" "0400" "73697465"
    "01" "01000000" "c0" "06" "0a000000" "00" "0200" "0500" "f803" "04" "40" "f0"  # both, 1 and 0x3e8: 1/4
    "03" "06000000" "0002" "05" "5003c0" "04" "01000000" "08" "0a8db50c"
)  # fmt: skip


def test_a_golden_update_that_says_how_important_ranks_are():
    """Of 5 elements in 10, 4 are of the first rank and are 5/4 as large, 1 of the second is 5 times as large."""
    change = {"q.A": torch.tensor([[1.0, 2.0, -3.0], [5.0, 7.0, 9.0]]), "q.B": torch.tensor([[0.5, 3.0], [-0.25, 1.0]])}
    body, schema = DRAWN.encode(change, PAIR, 3, np.array([12.0, 3.0])), schema_hash(PAIR, "base")
    assert encode_update(Update(3, "site", {}, 12, 7, 1.25), body, DRAWN, schema).hex() == GOLDEN_RANKS
    got, parts = decode_update(bytes.fromhex(GOLDEN_RANKS), DRAWN, schema, PAIR, 3)
    arrived = {"q.A": torch.tensor([[2.0, 2, 0], [0, 32, 0]]), "q.B": torch.tensor([[0.5, 0], [-0.5, 0]])}
    assert same(got.adapter, arrived)
    assert parts == {"header": 42 + 4 * 5 + 1 + 4, "positions": 10, "scales": 6, "values": 1, "records": 0}


GOLDEN_DIFFERENCE = (
    "4350464c" "04" "01" "03" "00" "02000000" "1255d4442ec7c09f" "00000000" "01000000" "0000000000000000"
    "0300" "c3a931" "10" "21000000" "01" "01000000" "c0" "02" "06000000" "03000000" "00" "38"
    "03" "05000000" "0402" "04" "40" "70" "04" "01000000" "80" "cf0f049f"
)  # fmt: skip
GOLDEN_WHOLE = (
    "4350464c" "04" "01" "01" "00" "02000000" "1255d4442ec7c09f" "00000000" "01000000" "0000000000000000"
    "0100" "63" "11" "27000000" "01" "01000000" "c0" "02" "07000000" "04000000" "01" "30" "00"
    "04" "10000000" "0000803f" "00000040" "000040c0" "0000a040" "438e6182"
)  # fmt: skip


def test_golden_broadcasts():
    told = decode_broadcast(bytes.fromhex(GOLDEN_DIFFERENCE), TERNARY, SCHEMA)
    assert told == Broadcast(2, "é1", 1, None, (TERNARY.encode(CHANGE, TEMPLATE, 1),))
    message = encode_broadcast(told, TERNARY, SCHEMA)
    assert message.blob.hex() == GOLDEN_DIFFERENCE
    parts = {"positions": 6, "scales": 5, "values": 1, "records": 0, "catch-up": 0}
    assert message.parts == parts | {"header": 38 + 3 + 4 + 5 * 5 + 1}  # five sections, a byte of names
    whole = {"q.A": CHANGE["q.A"], "q.B": torch.zeros(2, 1)}
    told = decode_broadcast(bytes.fromhex(GOLDEN_WHOLE), FP32, SCHEMA)
    assert told == Broadcast(2, "c", 1, FP32.encode(whole, TEMPLATE, 1), ())
    assert encode_broadcast(told, FP32, SCHEMA).blob.hex() == GOLDEN_WHOLE


@dataclass(frozen=True)
class Said:
    alpha: torch.Tensor = vector("positive")


TWO = Said(torch.tensor([2.0])), Said(torch.tensor([0.5]))
GROUPING, RANKING = "05080000000001000300000400", "0c080000000001000300f00300"  # 2 is 0x400, 1/2 is 0x3f0


def test_golden_records():
    """Before the sections of a broadcast grouping and then ranks, each where it says something; of an update ranks."""
    both, plain = Records(Said, Said), update()
    for grouping, ranks in itertools.product((TWO[0], None), (TWO[1], None)):
        beside = GROUPING * (grouping is not None) + RANKING * (ranks is not None)
        message = encode_broadcast(Broadcast(1, "site", 0, None, (), grouping, ranks), FP32, SCHEMA)
        assert message.blob[42:-4].hex() == beside
        assert message.parts["records"] == 8 * (len(beside) // 26)
        assert sum(message.parts.values()) == len(message.blob)
        told = decode_broadcast(message.blob, FP32, SCHEMA, both)
        assert [record and record.alpha.item() for record in (told.grouping, told.ranks)] == [
            record and record.alpha.item() for record in (grouping, ranks)
        ]
    blob = update(ranks=TWO[1])
    assert blob.hex()[: -2 * 4] == plain[:42].hex() + RANKING + plain[42:-4].hex()
    got, parts = decode_update(blob, FP32, SCHEMA, TEMPLATE, NUMBER, both)
    assert (got.ranks.alpha.item(), got.body, parts["records"]) == (0.5, plain[42:-4], 8)
    assert sum(parts.values()) == len(blob)


GOLDEN_INTRODUCTION = (
    "4350464c" "04" "05" "03" "00" "01000000" "1255d4442ec7c09f" "0c000000" "00000000" "0000000000000000"
    "0400" "73697465" "05080000000001000300000400" "5987aacf"
)  # fmt: skip


def introduced(said: Said | None = TWO[0]) -> bytes:
    return encode_introduction(Introduction(1, "site", 12, said), TERNARY, SCHEMA)


def test_a_golden_introduction():
    assert introduced().hex() == GOLDEN_INTRODUCTION
    said, parts = decode_introduction(bytes.fromhex(GOLDEN_INTRODUCTION), TERNARY, SCHEMA, Records(Said, Said))
    assert (said.round, said.client, said.n_train, said.grouping.alpha.item()) == (1, "site", 12, 2.0)
    assert parts == dict.fromkeys(parts, 0) | {"header": 38 + 4 + 5 + 4, "records": 8}
    silent, parts = decode_introduction(introduced(None), TERNARY, SCHEMA)
    assert (silent.grouping, sum(parts.values())) == (None, 38 + 4 + 4)


@pytest.mark.parametrize(
    ("blob", "kinds", "message"),
    [
        (resealed(introduced(), 8, bytes(4)), Records(Said), "introduction of client 'site' is for round 0"),
        (resealed(introduced(), 20, bytes(4)), Records(Said), "'site' says that it has no training items"),
        (introduced(), Records(None, Said), "has a section GROUPING, which the run's method does not use"),
        (
            resealed(introduced()[:-4] + bytes.fromhex(RANKING) + bytes(4)),
            Records(Said, Said),
            "more than a description",
        ),
        (resealed(introduced()[:-4] + bytes.fromhex(GROUPING) + bytes(4)), Records(Said), "GROUPING comes twice"),
        (update(TERNARY), Records(Said), "kind 2 where kind 5 was expected"),
    ],
    ids=range(6),
)
def test_introductions_that_are_none(blob, kinds, message):
    with pytest.raises(WireError, match=message):
        decode_introduction(blob, TERNARY, SCHEMA, kinds)


def test_relayed_and_empty_differences_are_charged_by_part():
    """What a client has sent itself costs a tag and a length."""
    body = TERNARY.encode(CHANGE, TEMPLATE, 1)
    for missed, late in ((False, 0), (True, len(relay([(12, body)])))):
        told = Broadcast(9, "site", 8, None, (b"", relay([(12, body)]), body))
        message = encode_broadcast(told, TERNARY, SCHEMA, missed)
        assert decode_broadcast(message.blob, TERNARY, SCHEMA) == told
        parts, counted = {"positions": 6, "scales": 5, "values": 1}, 1 if missed else 2
        header = 38 + 4 + 4 + 3 * 5 + counted * (4 * 5 + 1) + (0 if missed else 5 + 4)
        assert message.parts == {k: counted * n for k, n in parts.items()} | {
            "header": header, "records": 0, "catch-up": late
        }  # fmt: skip
        assert sum(message.parts.values()) == len(message.blob)


def test_random_masks_are_drawn_by_the_number_of_the_version():
    """Not by the round: two turns of a round have masks of their own."""
    codec = Codec(VALUES["fp32"], 0.5, mask="random", seed=55)
    blobs = [
        encode_update(Update(3, "site", {}, 12, 7, 1.25), codec.encode(CHANGE, TEMPLATE, number), codec, SCHEMA)
        for number in (7, 8)
    ]
    for blob, number in zip(blobs, (7, 8), strict=True):
        reach = codec.reach(CHANGE, TEMPLATE, number)
        expected = {name: t * reach[name] for name, t in CHANGE.items()}
        assert same(decode_update(blob, codec, SCHEMA, TEMPLATE, number)[0].adapter, expected)
    assert blobs[0] != blobs[1]


@pytest.mark.parametrize(
    ("beside", "kinds", "message"),
    [
        (RANKING + GROUPING, Records(Said, Said), "GROUPING comes twice or in the wrong place"),
        (GROUPING + GROUPING, Records(Said, Said), "GROUPING comes twice or in the wrong place"),
        (GROUPING, Records(None, Said), "has a section GROUPING, which the run's method does not use"),
        (GROUPING[:-4] + "ff00", Records(Said, Said), "Said.alpha cannot be read"),
    ],
)
def test_what_are_no_records(beside, kinds, message):
    blob = encode_broadcast(Broadcast(1, "site", 0, None, ()), FP32, SCHEMA).blob
    with pytest.raises(WireError, match=message):
        decode_broadcast(resealed(blob[:42] + bytes.fromhex(beside) + blob[42:]), FP32, SCHEMA, kinds)


@pytest.mark.parametrize(
    ("beside", "kinds", "message"),
    [
        (RANKING + RANKING, Records(Said, Said), "RANKING comes twice or in the wrong place"),
        (RANKING, Records(Said, None), "has a section RANKING, which the run's method does not use"),
        (GROUPING, Records(Said, Said), "section 5 where one of"),
    ],
)
def test_what_are_no_records_of_an_update(beside, kinds, message):
    blob = update()
    with pytest.raises(WireError, match=message):
        decode_update(resealed(blob[:42] + bytes.fromhex(beside) + blob[42:]), FP32, SCHEMA, TEMPLATE, NUMBER, kinds)


# -- the header ------------------------------------------------------------------------------------------------


def test_fields_at_their_ends_come_back():
    for round, client, n_train, steps, loss in ((2**32 - 1, "é" * 99, 2**32 - 1, 2**32 - 1, 1e6), (1, "", 1, 0, 0.0)):
        blob = update(round=round, client=client, n_train=n_train, steps=steps, loss=loss)
        got = read(blob)
        assert (got.round, got.client, got.n_train, got.steps, got.loss) == (round, client, n_train, steps, loss)
        assert round_of(blob) == round


def test_the_schema_tells_bases_names_shapes_and_order_apart():
    one = {"q.A": torch.zeros(1, 3), "q.B": torch.zeros(2, 1)}
    others = [
        {"k.A": torch.zeros(1, 3), "q.B": torch.zeros(2, 1)},
        {"q.A": torch.zeros(2, 3), "q.B": torch.zeros(2, 2)},
        {"q.A": torch.zeros(3, 1), "q.B": torch.zeros(2, 1)},
        {"q.B": torch.zeros(2, 1), "q.A": torch.zeros(1, 3)},
        {"q.A": torch.zeros(1, 3)},
    ]
    assert len({schema_hash(t, "base") for t in [one, *others]} | {schema_hash(one, "other")}) == 7
    assert schema_hash(one, "base") == schema_hash({name: t + 1 for name, t in one.items()}, "base")


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"HTTP", "not a capfl message: it starts with b'HTTP'"),
        (4, b"\x01", "format 1, this capfl reads 4"),
        (7, b"\x01", "format"),
        (5, b"\x03", "kind 3 where kind 2 was expected"),
        (6, b"\x09", "values of kind 9, expected 1"),
        (8, bytes(4), "for round 0"),
        (12, bytes(8), "another adapter"),
        (20, bytes(4), "no training items"),
        (28, struct.pack("<d", float("nan")), "loss nan"),
        (36, b"\xff\xff", "client id of 65535 bytes does not fit"),
        (36, b"\x03\x00", "section 101 where one of NAMES"),  # the last letter is read as a tag
        (38, b"\xff", "client id is not UTF-8"),
        (43, b"\xff\xff\xff\xff", "NAMES is cut off"),
        (47, b"\x80", "24 bytes of values, 4 in fp32 take 16"),
        (48, b"\x10", "section 16 where one of"),
        (69, struct.pack("<f", float("-inf")), "'q.B' has values that are not finite"),
    ],
)
def test_a_field_that_is_wrong_although_the_checksum_is_right(at, new, message):
    with pytest.raises(WireError, match=message):
        read(resealed(update(), at, new))


def test_one_bit_flipped_anywhere_and_bytes_more_or_less():
    blob = bytes.fromhex(GOLDEN_RANKS)
    flipped = [blob[: n // 8] + bytes([blob[n // 8] ^ 1 << n % 8]) + blob[n // 8 + 1 :] for n in range(8 * len(blob))]
    for wrong in (*flipped, *(blob[:length] for length in range(len(blob))), blob + b"\0", blob + blob):
        with pytest.raises(WireError):
            decode_update(wrong, DRAWN, schema_hash(PAIR, "base"), PAIR, 3)


def test_another_codec_or_another_kind_of_message():
    with pytest.raises(WireError, match="shorter than a header"):
        round_of(b"CPFL")
    with pytest.raises(WireError, match="values of kind 1, expected 3: the sites' codecs differ"):
        read(update(), TERNARY)
    blob = encode_broadcast(Broadcast(2, "c", 1, b"", ()), FP32, SCHEMA).blob
    with pytest.raises(WireError, match="kind 1 where kind 2"):
        read(blob)
    with pytest.raises(WireError, match="kind 2 where kind 1"):
        decode_broadcast(update(), FP32, SCHEMA)
    with pytest.raises(WireError, match="another adapter: base model, targets, layers or ranks differ"):
        decode_broadcast(blob, FP32, schema_hash(TEMPLATE, "another base"))


@pytest.mark.parametrize(
    ("version", "body", "message"),
    [
        (0, write(Section.DIFFERENCE, b""), "leads to version 0 has 1 differences"),
        (2, 3 * write(Section.DIFFERENCE, b""), "leads to version 2 has 3 differences"),
        (9, 2 * write(Section.STATE, b""), "a whole adapter and something else"),
        (9, write(Section.STATE, b"") + write(Section.DIFFERENCE, b""), "a whole adapter and something else"),
        (9, write(Section.NAMES, b"\x80"), "section 1 where one of DIFFERENCE, STATE"),
    ],
)
def test_broadcasts_that_are_none(version, body, message):
    blob = encode_broadcast(Broadcast(9, "c", version, None, ()), FP32, SCHEMA).blob
    with pytest.raises(WireError, match=message):
        decode_broadcast(resealed(blob[:-4] + body + bytes(4)), FP32, SCHEMA)
