"""The bound that messages are measured against, by hand."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
import torch

from capfl.types import Broadcast, Update
from capfl.wire import Codec, encode_broadcast, encode_update, schema_hash
from capfl.wire.entropy import bits, bits_down, bits_up, entropy, log2_choose
from capfl.wire.sections import parts
from capfl.wire.values import VALUES

TEMPLATE = {"m.A": torch.zeros(1, 4), "m.B": torch.zeros(6, 1)}
ADAPTER = {
    "m.A": torch.tensor([[3.0, -2.0, 0.1, 0.2]]),
    "m.B": torch.tensor([[0.1], [5.0], [4.0], [-6.0], [0.0], [0.1]]),
}
CHOICES = log2(6) + log2(20)  # 2 of 4 and 3 of 6
SIGNS = -3 * log2(3 / 5) - 2 * log2(2 / 5)  # + - + + - over the whole message
SCHEMA = schema_hash(TEMPLATE, "")


def codec(values: str, density: float = 0.5, **settings: object) -> Codec:
    return Codec(VALUES[values], density, **settings)  # type: ignore[arg-type]


def bits_of(codec: Codec, adapter: dict[str, torch.Tensor] = ADAPTER) -> float:
    return bits(codec.encode(adapter, TEMPLATE, 1), codec, TEMPLATE, 1)


def test_ternary_says_positions_and_signs() -> None:
    assert bits_of(codec("ternary")) == pytest.approx(CHOICES + SIGNS)


@pytest.mark.parametrize(("values", "each"), [("fp32", 32), ("bf16", 16)])
def test_plain_values_say_all_their_bits(values: str, each: int) -> None:
    assert bits_of(codec(values)) == pytest.approx(CHOICES + 5 * each)


def test_levels_and_signs_are_one_symbol() -> None:
    adapter = {"m.A": torch.tensor([[1.0, 2.0, -1.0, -2.0]])}
    assert bits_of(codec("2bit", 1.0), adapter) == pytest.approx(4 * log2(4))
    adapter = {"m.A": torch.tensor([[1.0, 2.0, -2.0, 2.0]])}
    assert bits_of(codec("2bit", 1.0), adapter) == pytest.approx(-2 * log2(1 / 4) - 2 * log2(2 / 4))


@pytest.mark.parametrize("values", ["8bit", "4bit", "3bit"])
def test_equal_values_say_nothing(values: str) -> None:
    assert bits_of(codec(values, 1.0), {"m.A": torch.full((1, 4), 2.0)}) == 0.0


def test_positions_that_are_known_cost_nothing() -> None:
    drawn = codec("bf16", 0.5, mask="random")
    body = drawn.encode(ADAPTER, TEMPLATE, 1)
    assert bits(body, drawn, TEMPLATE, 1) == 8 * parts(body)["values"] > 0
    assert bits_of(codec("bf16", 1.0), {"m.A": ADAPTER["m.A"]}) == 4 * 16
    body = drawn.encode(ADAPTER, TEMPLATE, 1, np.ones(1))  # nor does what they follow from
    assert bits(body, drawn, TEMPLATE, 1) == 8 * parts(body)["values"] == 5 * 16


def test_an_empty_message_says_nothing() -> None:
    assert bits_of(codec("ternary"), {}) == 0.0


def test_messages_say_what_their_bodies_say() -> None:
    c = codec("ternary")
    body = c.encode(ADAPTER, TEMPLATE, 1)
    update = encode_update(Update(1, "a", {}, 1, 1, 0.0), body, c, SCHEMA)
    assert bits_up(update, c, SCHEMA, TEMPLATE) == pytest.approx(CHOICES + SIGNS)
    two = encode_broadcast(Broadcast(3, "a", None, (body, c.encode(ADAPTER, TEMPLATE, 2))), c, SCHEMA)
    assert bits_down(two.blob, c, SCHEMA, TEMPLATE) == pytest.approx(2 * (CHOICES + SIGNS))
    none = encode_broadcast(Broadcast(1, "a", None, ()), c, SCHEMA)
    assert bits_down(none.blob, c, SCHEMA, TEMPLATE) == 0.0


def test_a_whole_adapter_says_float32() -> None:
    c = codec("ternary")
    whole = codec("fp32", 1.0).encode({"m.A": ADAPTER["m.A"]}, TEMPLATE, 1)
    message = encode_broadcast(Broadcast(2, "a", whole, ()), c, SCHEMA)
    assert bits_down(message.blob, c, SCHEMA, TEMPLATE) == 4 * 32


def test_entropy_and_choices() -> None:
    assert log2_choose(5, 2) == pytest.approx(log2(10))
    assert log2_choose(7, 0) == log2_choose(7, 7) == pytest.approx(0.0)
    assert entropy(torch.tensor([1, 1, 2, 3]).numpy()) == pytest.approx(2 * 1 + 2 * 2)
    assert entropy(torch.tensor([], dtype=torch.int64).numpy()) == 0.0
