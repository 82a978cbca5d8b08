"""The bound that messages are measured against, by hand."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
import torch

from capfl.types import Broadcast, Update
from capfl.wire import Codec, encode_broadcast, encode_update, schema_hash
from capfl.wire.entropy import bits, bits_down, bits_up
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


def said(values: str, *of_a: float, density: float = 0.5, mask: str = "top", importance: bool = False) -> float:
    codec = Codec(VALUES[values], density, mask)
    adapter = {"m.A": torch.tensor([of_a])} if of_a else ADAPTER
    return bits(codec.encode(adapter, TEMPLATE, 1, np.ones(1) if importance else None), codec, TEMPLATE, 1)


def test_bodies():
    assert said("ternary") == pytest.approx(CHOICES + SIGNS)
    assert said("fp32") == pytest.approx(CHOICES + 5 * 32)
    assert said("bf16") == pytest.approx(CHOICES + 5 * 16)
    # levels and signs are one symbol
    assert said("2bit", 1.0, 2.0, -1.0, -2.0, density=1) == pytest.approx(4 * log2(4))
    assert said("2bit", 1.0, 2.0, -2.0, 2.0, density=1) == pytest.approx(-2 * log2(1 / 4) - 2 * log2(2 / 4))
    assert said("4bit", 2.0, 2.0, 2.0, 2.0, density=1) == 0
    # positions that are known cost nothing, nor does what they follow from
    assert said("bf16", 3.0, -2.0, 0.1, 0.2, density=1) == 4 * 16
    assert said("bf16", mask="random", importance=True) == 5 * 16
    assert bits(Codec(VALUES["fp32"]).encode({}, TEMPLATE, 1), Codec(VALUES["fp32"]), TEMPLATE, 1) == 0


def test_messages_say_what_their_bodies_say():
    codec = Codec(VALUES["ternary"], 0.5)
    body = codec.encode(ADAPTER, TEMPLATE, 1)
    update = encode_update(Update(1, "a", {}, 1, 1, 0.0), body, codec, SCHEMA)
    assert bits_up(update, codec, SCHEMA, TEMPLATE) == pytest.approx(CHOICES + SIGNS)
    whole = Codec(VALUES["fp32"]).encode({"m.A": ADAPTER["m.A"]}, TEMPLATE, 1)
    for told, expected in (
        (Broadcast(3, "a", None, (body, codec.encode(ADAPTER, TEMPLATE, 2))), 2 * (CHOICES + SIGNS)),
        (Broadcast(2, "a", whole, ()), 4 * 32),
        (Broadcast(1, "a", None, ()), 0),
    ):
        blob = encode_broadcast(told, codec, SCHEMA).blob
        assert bits_down(blob, codec, SCHEMA, TEMPLATE) == pytest.approx(expected)
    drawn = Codec(VALUES["bf16"], 0.3, "random")  # each difference has the mask of its own round
    bodies = tuple(drawn.encode(ADAPTER, TEMPLATE, round) for round in (1, 2))
    blob = encode_broadcast(Broadcast(3, "a", None, bodies), drawn, SCHEMA).blob
    assert len(set(map(len, bodies))) == 2
    assert bits_down(blob, drawn, SCHEMA, TEMPLATE) == 8 * sum(parts(body)["values"] for body in bodies)
