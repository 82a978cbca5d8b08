"""Codecs as a whole: what is sent, what arrives, and which bodies are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import CODECS, KINDS, SMALL, normal, same
from capfl.config.schema import CodecConfig
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import Codec, down_codec, up_codec
from capfl.wire.body import pack
from capfl.wire.layout import Layout
from capfl.wire.sections import Section, read, write
from capfl.wire.values import VALUES

FP32 = Codec(VALUES["fp32"])
EVERY = {**{name: up_codec(config, 7) for name, config in CODECS.items()}, "down": down_codec(CODECS["down"], 7)}


def arrives(adapter: Adapter, codec: Codec, template: Adapter = SMALL, round: int = 1) -> Adapter:
    return codec.decode(memoryview(codec.encode(adapter, template, round)), template, round)


def sections(body: bytes) -> dict[Section, bytes]:
    return {tag: bytes(data) for tag, data in read(memoryview(body), tuple(Section))}


def flat(adapter: Adapter) -> np.ndarray:
    return Layout.of(adapter, SMALL).flatten(adapter)


# -- what arrives ------------------------------------------------------------------------------------------


def test_by_hand():
    # the largest three of A, in ranks that are rows, and two of B, in ranks that are columns (3 and -5 share one)
    adapter = {"v.A": torch.tensor([[1.0, -9.0, 2.0], [7.0, 0.5, 0.0]]), "v.B": torch.tensor([[3.0, 1.0], [-5.0, 2.0]])}
    got = arrives(adapter, Codec(VALUES["fp32"], 0.5))
    assert got["v.A"].tolist() == [[0.0, -9.0, 2.0], [7.0, 0.0, 0.0]]
    assert got["v.B"].tolist() == [[3.0, 0.0], [-5.0, 0.0]]
    got = arrives(adapter, Codec(VALUES["ternary"], 0.5))  # 5.5 becomes 6
    assert got["v.A"].tolist() == [[0.0, -6.0, 6.0], [7.0, 0.0, 0.0]]
    assert got["v.B"].tolist() == [[4.0, 0.0], [-4.0, 0.0]]


# -- which sections ----------------------------------------------------------------------------------------


def test_sections_of_each_kind_of_message():
    def tags(codec: Codec, adapter: Adapter) -> str:
        return "".join(tag.name[0] for tag in sections(codec.encode(adapter, SMALL, 1)))

    adapter = normal(2)
    assert tags(FP32, adapter) == "NV"
    assert tags(Codec(VALUES["fp32"], 0.5), adapter) == "NPV"
    assert tags(Codec(VALUES["ternary"]), adapter) == "NSV"
    assert tags(Codec(VALUES["ternary"], 0.5), adapter) == "NPSV"
    assert tags(Codec(VALUES["ternary"], 0.5, mask="random"), adapter) == "NSV"  # both sides know the positions
    assert tags(FP32, SMALL) == "N"  # nothing but zeros: nothing to send
    assert tags(FP32, adapter | {"q.A": torch.zeros(2, 3)}) == "NPV"
    assert tags(FP32, {}) == "N"


def test_names_are_a_bit_each():
    nine = {f"m{i}.A": torch.zeros(1, 1) for i in range(9)}
    body = FP32.encode({"m8.A": torch.ones(1, 1)}, nine, 1)
    assert sections(body)[Section.NAMES] == bytes([0, 0b10000000])
    assert same(FP32.decode(memoryview(body), nine, 1), {"m8.A": torch.ones(1, 1)})
    assert len(FP32.encode(normal(0), SMALL, 1)) == 2 * 5 + 1 + 4 * 24


# -- right on average --------------------------------------------------------------------------------------


def test_unbiased_by_hand():
    # 1, -3: energy 10 / 2 over mean 4 / 2 is 2.5, and along the values 2.5 * 4 = 10, their own length
    adapter = {"m.A": torch.tensor([[1.0, -3.0]])}
    codec = Codec(VALUES["ternary"], compensation="unbiased")
    assert arrives(adapter, codec, adapter)["m.A"].tolist() == [[2.5, -2.5]]
    for kind in set(KINDS) - {"ternary"}:  # their rounding is as often up as down
        unbiased, plain = (Codec(VALUES[kind], compensation=way) for way in ("unbiased", "feedback"))
        assert same(arrives(adapter, unbiased, adapter), arrives(adapter, plain, adapter))
    dense = {"m.A": torch.tensor([[3.0, 0.0, 0.0, 1.0]])}  # is not scaled for the zeros in it
    for mask in ("top", "random"):
        assert same(arrives(dense, Codec(VALUES["fp32"], mask=mask, compensation="unbiased"), dense), dense)


def test_a_part_that_is_drawn_is_scaled_up():
    codec = Codec(VALUES["fp32"], 0.25, mask="random", compensation="unbiased")
    got = [flat(arrives(normal(4), codec, round=round)) for round in (1, 2, 3, 4)]
    assert all(((one == 4 * flat(normal(4))) | (one == 0)).all() for one in got)
    assert (sum(got) / 4 == flat(normal(4))).all()  # a whole cycle is right, not only right on average
    up = arrives(normal(4), codec, round=3)  # what is answered with the same mask is not scaled again
    assert same(arrives(up, codec, round=3), up)
    assert not same(arrives(up, codec, round=2), up)


# -- from a config -----------------------------------------------------------------------------------------


def test_the_downlink_is_as_the_uplink_unless_it_is_told():
    config = CodecConfig(values="4bit", density=0.1, mask="top")
    expected = Codec(VALUES["4bit"], 0.1, "top", "feedback", 9)
    assert up_codec(config, 9) == down_codec(config, 9) == expected
    other = config.model_copy(update={"down_values": "ternary", "down_density": 0.3})
    assert up_codec(other, 9) == expected
    assert down_codec(other, 9) == replace(expected, values=VALUES["ternary"], density=0.3)


def test_what_a_config_leaves_open_follows_from_the_rest():
    assert up_codec(CodecConfig(), 0) == Codec(VALUES["ternary"], 1 / 3, "random", compensation="unbiased")
    assert up_codec(CodecConfig(values="bf16"), 0).density == 1
    assert up_codec(CodecConfig(mask="top"), 0).compensation == "feedback"
    assert down_codec(CodecConfig(values="bf16", down_values="ternary"), 0).density == 1 / 3
    assert {name for name, codec in EVERY.items() if codec.exact} == {"fp32"}


# -- refusals ----------------------------------------------------------------------------------------------

NAMES = write(Section.NAMES, b"\x80")
SPARSE = Codec(VALUES["ternary"], 0.5)
FOUND = sections(SPARSE.encode({"q.A": normal(0)["q.A"]}, SMALL, 1))
POSITIONS, SCALES, VALUE = (write(tag, FOUND[tag]) for tag in (Section.POSITIONS, Section.SCALES, Section.VALUES))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "list of tensors does not fit an adapter of 4"),
        (write(Section.NAMES, b"\x80\x00"), "list of tensors does not fit"),
        (write(Section.NAMES, b"\x88"), "names more than the adapter has"),
        (POSITIONS + SCALES + VALUE, "list of tensors does not fit"),
        (NAMES + NAMES, "NAMES comes twice or in the wrong place"),
        (NAMES + POSITIONS + VALUE + SCALES, "SCALES comes twice or in the wrong place"),
        (NAMES + POSITIONS, "ranks, positions or scales without values"),
        (NAMES + POSITIONS + VALUE, "scales are cut off"),
        (NAMES + write(Section.DIFFERENCE, b""), "section 16 where one of"),
        (bytes(10**7), "body of 10000000 bytes, an adapter of this shape takes 344 at most"),
    ],
)
def test_bodies_that_are_none(body, message):
    SPARSE.decode(memoryview(NAMES + POSITIONS + SCALES + VALUE), SMALL, 1)
    with pytest.raises(WireError, match=message):
        SPARSE.decode(memoryview(body), SMALL, 1)


@pytest.mark.parametrize("name", EVERY)
def test_a_body_cut_off_is_another_body_only_where_a_section_ends(name):
    for importance in (None, np.array([4.0, 0, 2, 1])):
        body = EVERY[name].encode(normal(5), SMALL, 1, importance)
        for length in range(len(body)):
            if length != 6:  # the list of names alone says that nothing changed; the message's checksum guards it
                with pytest.raises(WireError):
                    EVERY[name].decode(memoryview(body[:length]), SMALL, 1)


def test_values_that_are_not_finite_are_named():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(WireError, match=r"'v.A' has values that are not finite"):
            SPARSE.encode(normal(0) | {"v.A": torch.full((2, 3), bad)}, SMALL, 1)
    layout, values = Layout.of({"q.B": SMALL["q.B"], "v.A": SMALL["v.A"]}, SMALL), np.zeros(14, np.float32)
    values[12:] = 1.0, np.inf
    body = pack(values, np.array([12, 13]), True, VALUES["fp32"], layout, SMALL)
    with pytest.raises(WireError, match=r"'v.A' has values that are not finite"):
        FP32.decode(memoryview(body), SMALL, 1)
    with pytest.raises(WireError, match=r"'q.B' has values that are not finite"):  # beyond the largest bfloat16
        arrives({"q.B": torch.full((4, 2), 3.4e38)}, Codec(VALUES["bf16"]))
