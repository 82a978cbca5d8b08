"""Whole numbers of changes: what their sum says, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adapters import SMALL, normal
from capfl import adapter as algebra
from capfl.config.schema import CodecConfig
from capfl.errors import TrainingError, WireError
from capfl.maths.masks import Whole
from capfl.types import Adapter
from capfl.wire import up_codec
from capfl.wire.summed import BITS, OF_LOSS, UNIT, Summed

ROW = {"m.A": torch.zeros(1, 4), "m.B": torch.zeros(2, 1)}


def made(codec: dict[str, Any], clients: int = 3, template: Adapter = SMALL, number: int = 1) -> Summed:
    return Summed(up_codec(CodecConfig(**codec), 3), template, template, number, clients)


def total(parts: list[Whole]) -> Whole:
    first, *rest = parts
    for one in rest:
        first = first.plus(one)
    return first


def test_one_bit_by_hand() -> None:
    """Two clients with scales 2 and 4 (the mean magnitude of a rank), who agree in all but the last value of A."""
    summed = made({"density": 1, "compensation": "off"}, 2, ROW)
    change = {"m.A": torch.tensor([[1.0, 2.0, -3.0, 2.0]]), "m.B": torch.tensor([[0.5], [-0.5]])}
    other = {"m.A": torch.tensor([[4.0, 4.0, -4.0, -4.0]]), "m.B": torch.tensor([[0.5], [-0.5]])}
    parts = [summed.whole(change, 1.25, 6), summed.whole(other, 1.75, 9)]
    assert [one.values.tolist() for one in parts] == [[1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 1, 0]]
    assert (parts[0].numbers * [UNIT, UNIT, OF_LOSS, 1]).tolist() == [2.0, 0.5, 1.25, 6]
    assert summed.width == 2
    mean = summed.mean(total(parts), 2)
    assert mean.change["m.A"].tolist() == [[3.0, 3.0, -3.0, 0.0]]
    assert mean.change["m.B"].tolist() == [[0.5], [-0.5]]
    assert (mean.loss, mean.steps) == (1.5, 7.5)


def test_levels_by_hand() -> None:
    """Two bits: cells of a half of the largest magnitude, in whose middles the values are."""
    summed = made({"values": "2bit", "density": 1, "compensation": "off"}, 3, ROW)
    change = {"m.A": torch.tensor([[4.0, 1.0, -1.0, -4.0]]), "m.B": torch.tensor([[0.0], [0.0]])}
    one = summed.whole(change, 0.0, 1)
    assert one.values.tolist() == [3, 2, 1, 0, 2, 1]  # zeros push to both sides alike, and weigh nothing
    mean = summed.mean(one, 1)
    assert mean.change["m.A"].tolist() == [[3.0, 1.0, -1.0, -3.0]]
    assert mean.change["m.B"].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("values", BITS)
def test_the_mean_of_equals_is_what_one_of_them_sends(values: str) -> None:
    summed = made({"values": values, "density": 0.5}, 7)
    one = summed.whole(normal(1), 2.0, 3)
    alone, seven = summed.mean(one, 1), summed.mean(total([one] * 7), 7)
    assert (alone.loss, alone.steps) == (seven.loss, seven.steps) == (2.0, 3)
    for name, t in alone.change.items():
        torch.testing.assert_close(seven.change[name], t, rtol=1e-6, atol=0)


@pytest.mark.parametrize("values", BITS)
def test_the_elements_are_those_of_the_codec_and_their_mean_comes_near(values: str) -> None:
    codec = up_codec(CodecConfig(values=values, density=0.5), 3)
    change = normal(1)
    mean = Summed(codec, SMALL, SMALL, 2, 3).mean(Summed(codec, SMALL, SMALL, 2, 3).whole(change, 0.0, 1), 1).change
    reach = codec.reach(change, SMALL, 2)
    for name, t in mean.items():
        assert not (t.bool() & ~reach[name]).any()
        assert torch.equal(t.sign(), change[name].sign() * reach[name])
    plain = codec.decode(memoryview(codec.encode(change, SMALL, 2)), SMALL, 2)
    error = algebra.norm(algebra.subtract(mean, plain)) / algebra.norm(plain)
    assert error < {"ternary": 0.15, "2bit": 0.8, "3bit": 0.4, "4bit": 0.2, "8bit": 0.02}[values]


@pytest.mark.parametrize(("values", "clients", "width"), [
    ("ternary", 3, 2), ("ternary", 4, 3), ("ternary", 7, 3), ("ternary", 8, 4), ("ternary", 30, 5),
    ("2bit", 3, 4), ("3bit", 3, 5), ("4bit", 4, 6), ("8bit", 30, 13),
])  # fmt: skip
def test_the_width_holds_the_largest_sum_and_no_more(values: str, clients: int, width: int) -> None:
    summed = made({"values": values}, clients)
    most = clients * (2 ** BITS[values] - 1)
    assert summed.width == width
    assert most < 2**width <= 2 * most


def test_sums_that_cannot_be() -> None:
    summed = made({"density": 1}, 4)
    one = summed.whole(normal(1), 1.0, 2)
    with pytest.raises(WireError, match="a sum of 3 clients has 7 where 3 is the most"):
        summed.mean(Whole(one.values * 0 + 7, 3, one.numbers), 3)
    with pytest.raises(WireError, match="other numbers"):
        summed.mean(Whole(one.values[1:], 3, one.numbers), 3)
    with pytest.raises(WireError, match="bits a value, 31 at most"):
        made({"values": "8bit"}, 2**24)


def test_what_a_number_has_no_room_for_is_an_error() -> None:
    huge = {name: t + 1e3 for name, t in SMALL.items()}
    with pytest.raises(TrainingError, match=r"scale of the change is 1e\+03.*learning_rate too high"):
        made({"density": 1}).whole(huge, 1.0, 1)
    with pytest.raises(TrainingError, match="the loss 1e"):
        made({"density": 1}).whole(normal(1), 1e6, 1)
    with pytest.raises(WireError, match="not finite"):
        made({"density": 1}).whole({name: t + np.inf for name, t in SMALL.items()}, 1.0, 1)
