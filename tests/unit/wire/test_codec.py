"""Codecs as a whole: what is sent, what arrives, and which bodies are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import CODECS, KINDS, SMALL, filled, normal, same
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
values32 = st.floats(-(2.0**40), 2.0**40, width=32)


def arrives(adapter: Adapter, codec: Codec, template: Adapter = SMALL, round: int = 1) -> Adapter:
    return codec.decode(memoryview(codec.encode(adapter, template, round)), template, round)


def sections(body: bytes) -> dict[Section, bytes]:
    return {tag: bytes(data) for tag, data in read(memoryview(body), tuple(Section))}


def flat(adapter: Adapter, template: Adapter = SMALL) -> list[float]:
    return Layout.of(adapter, template).flatten(adapter).tolist()


# -- what arrives ------------------------------------------------------------------------------------------


def test_exact_codecs():
    assert {name for name, codec in EVERY.items() if codec.exact} == {"fp32"}
    assert Codec(VALUES["fp32"], mask="random").exact


@given(filled(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_dense_fp32_arrives_as_it_was(adapter):
    assert same(arrives(adapter, FP32, adapter), adapter)


def test_the_largest_values_arrive_and_zeros_elsewhere():
    adapter = {"q.A": torch.tensor([[1.0, -9.0, 2.0], [8.0, 0.5, 0.25]])}
    got = arrives(adapter, Codec(VALUES["fp32"], 0.5))
    assert got["q.A"].tolist() == [[0.0, -9.0, 2.0], [8.0, 0.0, 0.0]]


def test_ternary_by_hand():
    # three of A, in ranks that are rows, and two of B, in ranks that are columns (3 and -5 share one); 5.5 becomes 6
    adapter = {"v.A": torch.tensor([[1.0, -9.0, 2.0], [7.0, 0.5, 0.0]]), "v.B": torch.tensor([[3.0, 1.0], [-5.0, 2.0]])}
    got = arrives(adapter, Codec(VALUES["ternary"], 0.5))
    assert got["v.A"].tolist() == [[0.0, -6.0, 6.0], [7.0, 0.0, 0.0]]
    assert got["v.B"].tolist() == [[4.0, 0.0], [-4.0, 0.0]]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=40)
@given(adapter=filled(values32), round=st.integers(1, 9))
def test_what_is_encoded_can_be_decoded(name, adapter, round):
    """Any values, any shapes: the limit on a body's length is never in the way."""
    codec = EVERY[name]
    got = arrives(adapter, codec, adapter, round)
    assert list(got) == list(adapter)
    assert all(t.shape == adapter[n].shape and bool(t.isfinite().all()) for n, t in got.items())
    n_sent = sum(int(t.count_nonzero()) for t in got.values())
    share = codec.density * sum(t.numel() for t in adapter.values())
    assert n_sent <= share + 0.5 or codec.mask == "random"


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_dense_message_is_small(kind):
    adapter = normal(0)
    error = np.abs(np.array(flat(adapter)) - np.array(flat(arrives(adapter, Codec(VALUES[kind])))))
    most = {"fp32": 0, "bf16": 2**-7, "ternary": 2.5, "8bit": 0.02, "4bit": 0.3, "3bit": 0.6, "2bit": 1.2}
    assert error.max() <= most[kind]


@given(st.sets(st.sampled_from(list(SMALL))), st.sampled_from(list(EVERY)))
def test_any_part_of_an_adapter_arrives_with_its_names(names, codec):
    part = {name: t for name, t in normal(1).items() if name in names}
    assert list(arrives(part, EVERY[codec])) == [name for name in SMALL if name in names]


def test_values_that_are_not_finite_are_not_sent():
    for bad in (float("nan"), float("inf")):
        adapter = normal(0) | {"v.A": torch.full((2, 3), bad)}
        with pytest.raises(WireError, match=r"'v.A' has values that are not finite"):
            Codec(VALUES["ternary"], 0.1).encode(adapter, SMALL, 1)


# -- which sections ----------------------------------------------------------------------------------------


def test_sections_of_each_kind_of_message():
    adapter = normal(2)

    def tags(codec: Codec, adapter: Adapter = adapter) -> str:
        return "".join(tag.name[0] for tag in sections(codec.encode(adapter, SMALL, 1)))

    assert tags(FP32) == "NV"
    assert tags(Codec(VALUES["fp32"], 0.5)) == "NPV"
    assert tags(Codec(VALUES["ternary"])) == "NSV"
    assert tags(Codec(VALUES["ternary"], 0.5)) == "NPSV"
    assert tags(Codec(VALUES["ternary"], 0.5, mask="random")) == "NSV"  # both sides know the positions
    assert tags(FP32, SMALL) == "N"  # nothing but zeros: nothing to send
    assert tags(FP32, adapter | {"q.A": torch.zeros(2, 3)}) == "NPV"
    assert tags(FP32, {}) == "N"


def test_names_are_a_bit_each():
    nine = {f"m{i}.A": torch.zeros(1, 1) for i in range(9)}
    body = FP32.encode({"m8.A": torch.ones(1, 1)}, nine, 1)
    assert sections(body)[Section.NAMES] == bytes([0, 0b10000000])
    assert same(FP32.decode(memoryview(body), nine, 1), {"m8.A": torch.ones(1, 1)})


def test_dense_fp32_is_ten_bytes_and_the_values():
    assert len(FP32.encode(normal(0), SMALL, 1)) == 2 * 5 + 1 + 4 * 24


# -- rounds ------------------------------------------------------------------------------------------------


def test_a_random_mask_depends_on_seed_and_round_and_both_sides_draw_it():
    adapter = normal(3)
    drawn = {seed: Codec(VALUES["fp32"], 0.25, mask="random", seed=seed) for seed in (0, 1)}
    got = [arrives(adapter, drawn[0], round=r) for r in (1, 2, 3, 4)]
    assert [sum(values) for values in zip(*map(flat, got), strict=True)] == flat(adapter)  # each element once
    assert all(value in (0, whole) for value, whole in zip(flat(got[0]), flat(adapter), strict=True))
    masks = {tuple(map(bool, flat(arrives(adapter, codec, round=r)))) for codec in drawn.values() for r in (1, 2)}
    assert len(masks) == 4


# -- right on average --------------------------------------------------------------------------------------


def test_unbiased_by_hand():
    # 1, -3: energy 10 / 2 over mean 4 / 2 is 2.5, and along the values 2.5 * 4 = 10, their own length
    adapter = {"m.A": torch.tensor([[1.0, -3.0]])}
    codec = Codec(VALUES["ternary"], compensation="unbiased")
    assert arrives(adapter, codec, adapter)["m.A"].tolist() == [[2.5, -2.5]]
    for kind in set(KINDS) - {"ternary"}:  # their rounding is as often up as down
        assert same(
            arrives(adapter, Codec(VALUES[kind], compensation="unbiased"), adapter),
            arrives(adapter, Codec(VALUES[kind]), adapter),
        )


def test_a_part_that_is_drawn_is_scaled_up():
    adapter = normal(4)
    codec = Codec(VALUES["fp32"], 0.25, mask="random", compensation="unbiased")
    for round in (1, 2, 3, 4):
        got = torch.tensor(flat(arrives(adapter, codec, round=round)))
        assert same({"": got}, {"": torch.where(got != 0, 4 * torch.tensor(flat(adapter)), 0.0)})
    sums = [
        sum(values) / 4 for values in zip(*(flat(arrives(adapter, codec, round=r)) for r in (1, 2, 3, 4)), strict=True)
    ]
    assert sums == flat(adapter)  # a whole cycle is right, not only right on average


def test_what_is_answered_with_the_same_mask_is_not_scaled_again():
    codec = Codec(VALUES["fp32"], 0.25, mask="random", compensation="unbiased")
    up = arrives(normal(4), codec, round=3)
    assert same(arrives(up, codec, round=3), up)
    assert not same(arrives(up, codec, round=2), up)


def test_ternary_zeros_push_to_both_sides():
    values, layout = np.array([0, 0, 0, 0, 2, -2], np.float32), Layout((("m.A", (1, 6)),))
    scales, signs = VALUES["ternary"].encode(values, np.arange(6), layout, True)
    got = VALUES["ternary"].decode(memoryview(scales), memoryview(signs), np.arange(6), layout)
    assert got.tolist() == [2, -2, 2, -2, 2, -2]


def test_a_dense_unbiased_message_is_not_scaled_for_the_zeros_in_it():
    adapter = {"m.A": torch.tensor([[3.0, 0.0, 0.0, 1.0]])}
    for mask in ("top", "random"):
        assert same(arrives(adapter, Codec(VALUES["fp32"], mask=mask, compensation="unbiased"), adapter), adapter)


# -- from a config -----------------------------------------------------------------------------------------


def test_the_downlink_is_as_the_uplink_unless_it_is_told():
    config = CodecConfig(values="4bit", density=0.1, mask="top")
    expected = Codec(VALUES["4bit"], 0.1, "top", "feedback", 9)
    assert up_codec(config, 9) == down_codec(config, 9) == expected
    other = config.model_copy(update={"down_values": "ternary", "down_density": 0.3})
    assert up_codec(other, 9) == expected
    assert down_codec(other, 9) == replace(expected, values=VALUES["ternary"], density=0.3)


def test_what_a_config_leaves_open_follows_from_the_rest():
    default = up_codec(CodecConfig(), 0)
    assert default == Codec(VALUES["ternary"], 1 / 3, "random", compensation="unbiased")
    assert up_codec(CodecConfig(values="bf16"), 0).density == 1
    assert up_codec(CodecConfig(mask="top"), 0).compensation == "feedback"
    assert down_codec(CodecConfig(values="bf16", down_values="ternary"), 0).density == 1 / 3


# -- refusals ----------------------------------------------------------------------------------------------

NAMES = write(Section.NAMES, b"\x80")
ADAPTER = {"q.A": torch.tensor([[1.0, -9.0, 2.0], [8.0, 0.5, 0.25]])}
SPARSE = Codec(VALUES["ternary"], 0.5)
FOUND = sections(SPARSE.encode(ADAPTER, SMALL, 1))
WHOLE = {tag: write(tag, data) for tag, data in FOUND.items()}
POSITIONS, SCALES, VALUE = WHOLE[Section.POSITIONS], WHOLE[Section.SCALES], WHOLE[Section.VALUES]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "list of tensors does not fit an adapter of 4"),
        (write(Section.NAMES, b""), "list of tensors does not fit"),
        (write(Section.NAMES, b"\x80\x00"), "list of tensors does not fit"),
        (write(Section.NAMES, b"\x88"), "names more than the adapter has"),
        (POSITIONS + SCALES + VALUE, "list of tensors does not fit"),
        (NAMES + NAMES, "NAMES comes twice or in the wrong place"),
        (POSITIONS + NAMES + SCALES + VALUE, "NAMES comes twice or in the wrong place"),
        (NAMES + POSITIONS + VALUE + SCALES, "SCALES comes twice or in the wrong place"),
        (NAMES + POSITIONS + SCALES + VALUE + VALUE, "VALUES comes twice"),
        (NAMES + POSITIONS, "ranks, positions or scales without values"),
        (NAMES + SCALES, "positions or scales without values"),
        (NAMES + POSITIONS + VALUE, "scales are cut off"),
        (NAMES + write(Section.DIFFERENCE, b""), "section 16 where one of"),
        (NAMES + bytes(400), "body of 406 bytes, an adapter of this shape takes 344 at most"),
    ],
)
def test_bodies_that_are_none(body, message):
    with pytest.raises(WireError, match=message):
        SPARSE.decode(memoryview(body), SMALL, 1)


def test_a_huge_body_is_refused_before_anything_is_made_of_it():
    with pytest.raises(WireError, match="takes 344 at most"):
        SPARSE.decode(memoryview(bytes(10**7)), SMALL, 1)


@pytest.mark.parametrize("name", EVERY)
def test_a_body_cut_off_is_another_body_only_where_a_section_ends(name):
    body = EVERY[name].encode(normal(5), SMALL, 1)
    for length in range(len(body)):
        if length != 6:  # the list of names alone says that nothing changed; the message's checksum guards it
            with pytest.raises(WireError):
                EVERY[name].decode(memoryview(body[:length]), SMALL, 1)


def test_values_that_are_not_finite_are_named():
    layout = Layout.of({"q.B": SMALL["q.B"], "v.A": SMALL["v.A"]}, SMALL)
    values = np.array([1.0, np.inf], np.float32)
    body = pack(np.append(np.zeros(12, np.float32), values), np.array([12, 13]), True, VALUES["fp32"], layout, SMALL)
    with pytest.raises(WireError, match=r"'v.A' has values that are not finite"):
        FP32.decode(memoryview(body), SMALL, 1)
    overflows = {"q.B": torch.full((4, 2), 3.4e38)}  # beyond the largest bfloat16
    with pytest.raises(WireError, match=r"'q.B' has values that are not finite"):
        arrives(overflows, Codec(VALUES["bf16"]))
