"""Codecs as a whole: what is sent, what arrives, what is carried over, and which bodies are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters import KINDS, SMALL, normal, same, total
from capfl import adapter as algebra
from capfl.config.schema import CodecConfig
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import Codec, compensate, down_codec, full_codec, select, up_codec
from capfl.wire.body import pack
from capfl.wire.layout import Layout
from capfl.wire.sections import Section, read, write
from capfl.wire.values import VALUES

FP32 = Codec(VALUES["fp32"])
FOUR = np.array([4.0, 0, 2, 1])


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


def test_which_sections():
    def tags(codec: Codec, adapter: Adapter, importance: np.ndarray | None = None) -> str:
        return "".join(tag.name[0] for tag in sections(codec.encode(adapter, SMALL, 1, importance)))

    adapter, drawn = normal(2), Codec(VALUES["ternary"], 0.5, mask="random")  # both sides know the positions
    assert [tags(Codec(VALUES[kind], d), adapter) for kind in ("fp32", "ternary") for d in (1, 0.5)] == [
        "NV", "NPV", "NSV", "NPSV",
    ]  # fmt: skip
    assert [tags(drawn, adapter), tags(drawn, adapter, FOUR), tags(FP32, adapter, FOUR)] == ["NSV", "NRSV", "NPV"]
    assert tags(FP32, SMALL) == tags(drawn, {}, FOUR) == "N"  # nothing but zeros: nothing to send
    nine = {f"m{i}.A": torch.zeros(1, 1) for i in range(9)}
    body = FP32.encode({"m8.A": torch.ones(1, 1)}, nine, 1)
    assert sections(body)[Section.NAMES] == bytes([0, 0b10000000])
    assert same(FP32.decode(memoryview(body), nine, 1), {"m8.A": torch.ones(1, 1)})


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


# -- error feedback ----------------------------------------------------------------------------------------


def row(*values: float) -> Adapter:
    return {"m.A": torch.tensor([values])}


def test_three_rounds_by_hand():
    one, third, residual = row(0.0, 0.0, 0.0), Codec(VALUES["fp32"], 1 / 3), dict[str, torch.Tensor]()
    for change, sent, left in (
        (row(3.0, 2.0, -1.0), row(3.0, 0.0, 0.0), row(0.0, 2.0, -1.0)),
        (row(1.0, 1.0, -1.0), row(0.0, 3.0, 0.0), row(1.0, 0.0, -2.0)),
        (row(0.0, 0.0, 2.0), row(1.0, 0.0, 0.0), {}),
    ):
        body, residual = compensate(change, residual, third, one, 1)
        assert same(third.decode(memoryview(body), one, 1), sent)
        assert same(residual, left)
    _, residual = compensate(row(3.0, 2.0, -1.0), {}, Codec(VALUES["ternary"]), one, 1)
    assert same(residual, row(1.0, 0.0, 1.0))  # the error of the values is carried too
    with pytest.raises(WireError, match="not finite"):
        compensate(row(3e38, 0.0, 0.0), row(3e38, 0.0, 0.0), third, one, 1)


def test_a_tensor_that_does_not_change_keeps_its_residual_and_arguments_stay():
    change, residual = {"q.A": torch.ones(2, 3)}, {"q.A": torch.ones(2, 3), "v.B": torch.full((2, 2), 4.0)}
    body, after = compensate(change, residual, FP32, SMALL, 1)
    assert same(FP32.decode(memoryview(body), SMALL, 1), {"q.A": torch.full((2, 3), 2.0)})
    assert same(after, {"v.B": residual["v.B"]})
    assert same(change, {"q.A": torch.ones(2, 3)})
    assert same(residual, {"q.A": torch.ones(2, 3), "v.B": torch.full((2, 2), 4.0)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mask", "density"), [("top", 0.15), ("random", 0.5), ("top", 1.0)])
def test_sent_and_residual_sum_to_the_changes_exactly(kind, mask, density):
    """Also what importance drops. In steps of 1/256: coarse enough for float32 to sum exactly."""
    codec, generator = Codec(VALUES[kind], density, mask, seed=3), torch.Generator().manual_seed(0)
    changes = [
        {n: torch.randint(-64, 65, t.shape, generator=generator) / 256 for n, t in SMALL.items()} for _ in range(5)
    ]
    for importance in (None, FOUR):
        residual, messages = dict[str, torch.Tensor](), []
        for round, change in enumerate(changes, 1):
            body, residual = compensate(change, residual, codec, SMALL, round, importance)
            messages.append(codec.decode(memoryview(body), SMALL, round))
        assert same(total([*messages, residual]), total(changes))
        assert importance is None or not any(m["q.A"][1].any() or m["q.B"][:, 1].any() for m in messages)


# -- from a config -----------------------------------------------------------------------------------------


def test_a_message_that_is_scaled_by_the_root_is_as_long_as_the_change():
    """Where all values are as large as each other; and what is longer by how much is what the codec says."""
    adapter = {"m.A": torch.full((4, 50), 0.5), "m.B": torch.full((50, 4), -0.5)}
    for compensation, gain in (("unbiased", 4.0), ("length", 2.0), ("feedback", 4.0)):
        codec = Codec(VALUES["ternary"], 0.25, "random", compensation)
        assert codec.gain == gain
        arrived = arrives(adapter, codec, adapter)
        scale = {"unbiased": 4.0, "length": 2.0, "feedback": 1.0}[compensation]
        assert {abs(float(v)) for v in torch.cat([t.flatten() for t in arrived.values()])} == {0.0, 0.5 * scale}
    long = arrives(adapter, Codec(VALUES["ternary"], 0.25, "random", "length"), adapter)
    assert algebra.norm(long) == pytest.approx(algebra.norm(adapter), rel=0.05)  # about a quarter is drawn


def test_codecs_of_a_config():
    config = CodecConfig(values="4bit", density=0.1, mask="top")
    expected = Codec(VALUES["4bit"], 0.1, "top", "feedback", 9)
    assert up_codec(config, 9) == down_codec(config, 9) == expected
    other = config.model_copy(update={"down_values": "ternary", "down_density": 0.3})
    assert up_codec(other, 9) == expected
    assert down_codec(other, 9) == replace(expected, values=VALUES["ternary"], density=0.3)
    # what is left open follows from the rest
    assert up_codec(CodecConfig(), 0) == Codec(VALUES["ternary"], 0.2, "random", compensation="unbiased")
    in_turn = [make(CodecConfig(), 0, in_turn=True) for make in (up_codec, down_codec)]
    assert in_turn == 2 * [Codec(VALUES["ternary"], 0.2, "random", compensation="length")]
    assert up_codec(CodecConfig(compensation="unbiased"), 0, in_turn=True).compensation == "unbiased"
    assert up_codec(config, 9, in_turn=True) == expected
    assert up_codec(CodecConfig(values="bf16"), 0).density == 1
    assert down_codec(CodecConfig(values="bf16", down_values="ternary"), 0).density == 0.2
    assert full_codec(CodecConfig(), 0) == Codec(VALUES["4bit"], 1.0, "random", compensation="unbiased")
    assert full_codec(CodecConfig(down_values="bf16"), 0).values is VALUES["bf16"]
    assert up_codec(CodecConfig(values="fp32"), 0).exact
    assert not any(codec.exact for codec in (up_codec(CodecConfig(), 0), Codec(VALUES["fp32"], 0.9)))


# -- refusals ----------------------------------------------------------------------------------------------

NAMES = write(Section.NAMES, b"\x80")
SPARSE = Codec(VALUES["ternary"], 0.5)
FOUND = sections(SPARSE.encode({"q.A": normal(0)["q.A"]}, SMALL, 1))
POSITIONS, SCALES, VALUE = (write(tag, FOUND[tag]) for tag in (Section.POSITIONS, Section.SCALES, Section.VALUES))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "does not say which tensors it has"),
        (write(Section.NAMES, b"\x80\x00"), "2 bytes, 4 numbers of 1 bits take 1"),
        (write(Section.NAMES, b"\x88"), "spare bits are not zero"),
        (NAMES + NAMES, "NAMES comes twice or in the wrong place"),
        (NAMES + POSITIONS + VALUE + SCALES, "SCALES comes twice or in the wrong place"),
        (NAMES + POSITIONS, "ranks, positions or scales without values"),
        (NAMES + POSITIONS + VALUE, "do not begin with a Rice parameter"),
        (NAMES + write(Section.POSITIONS, bytes(5)) + SCALES + VALUE, "values of no elements"),
        (NAMES + write(Section.DIFFERENCE, b""), "section 16 where one of"),
        (bytes(10**7), "body of 10000000 bytes, an adapter of this shape takes 344 at most"),
    ],
)
def test_bodies_that_are_none(body, message):
    SPARSE.decode(memoryview(NAMES + POSITIONS + SCALES + VALUE), SMALL, 1)
    with pytest.raises(WireError, match=message):
        SPARSE.decode(memoryview(body), SMALL, 1)


def test_values_that_are_not_finite_are_named():
    with pytest.raises(WireError, match=r"'v.A' has values that are not finite"):
        SPARSE.encode(normal(0) | {"v.A": torch.full((2, 3), float("nan"))}, SMALL, 1)
    layout, values = Layout.of({"q.B": SMALL["q.B"], "v.A": SMALL["v.A"]}, SMALL), np.zeros(14, np.float32)
    values[12:] = 1.0, np.inf
    body = pack(values, np.array([12, 13]), VALUES["fp32"], layout, SMALL)
    with pytest.raises(WireError, match=r"'v.A' has values that are not finite"):
        FP32.decode(memoryview(body), SMALL, 1)
    with pytest.raises(WireError, match=r"'q.B' has values that are not finite"):  # beyond the largest bfloat16
        arrives({"q.B": torch.full((4, 2), 3.4e38)}, Codec(VALUES["bf16"]))


@pytest.mark.parametrize("values", ["bf16", "ternary", "8bit", "2bit"])
@pytest.mark.parametrize("mask", ["top", "random"])
def test_messages_are_the_same_however_large_the_blocks_are(values, mask, monkeypatch):
    """What is worked on at once is a matter of memory alone."""
    adapter = {f"{i}.{factor}": 10.0**i * t for i in range(3) for factor, t in normal(i, {
        "A": torch.zeros(4, 37), "B": torch.zeros(51, 4)}).items()}  # fmt: skip
    adapter["1.B"][:20] = 0
    codec, found = Codec(VALUES[values], 0.4, mask, "off", 3), set()
    for block in (8, 64, 2**18):
        for room in ("layout", "rice", "values"):
            monkeypatch.setattr(f"capfl.wire.{room}.BLOCK", block)
        select._all_turns.cache_clear()
        for importance in (None, np.arange(12.0)):
            body = codec.encode(adapter, adapter, 2, importance)
            got = codec.decode(memoryview(body), adapter, 2)
            found.add((importance is None, body, b"".join(t.numpy().tobytes() for t in got.values())))
    assert len(found) == 2
