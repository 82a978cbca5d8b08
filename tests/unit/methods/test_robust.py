"""Robust means: exact on few numbers, within the honest ones, and refused where they mean nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import CODECS, SMALL
from capfl import adapter as algebra
from capfl.config.schema import FederationConfig, MethodConfig
from capfl.errors import ConfigError
from capfl.methods import Method, build
from capfl.methods.combine import Combine, TruncatedProduct, WeightedMean
from capfl.methods.order import Order
from capfl.methods.ranks import Shares
from capfl.methods.robust import Clipped, middle, robust
from capfl.types import Adapter
from capfl.wire import Codec, up_codec
from parts import Federation, folded, row

FP32 = up_codec(CODECS["fp32"], 3)
ZERO = {"m.A": torch.zeros(1, 1)}


def column(*values: float) -> list[Adapter]:
    return [{"m.A": torch.tensor([[v]])} for v in values]


def made(method: str | Method, kind: str, up: Codec = FP32) -> Method:
    built = build(MethodConfig(name=method)) if isinstance(method, str) else method
    return robust(built, FederationConfig(robust=kind), up)  # type: ignore[arg-type]


# -- the middle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "trim", "expected"),
    [
        ((5.0,), 0.5, 5.0),
        ((1.0, 3.0), 0.5, 2.0),
        ((9.0, 1.0, 2.0), 0.5, 2.0),
        ((9.0, 1.0, 2.0, 3.0), 0.5, 2.5),
        ((9.0, 1.0, 2.0), 0.2, 2.0),  # one of three at either end: rather too many than none
        ((9.0, 1.0, 2.0, 3.0, 4.0), 0.2, 3.0),
        ((9.0, 1.0, 2.0, 3.0, 4.0), 0.21, 3.0),
        ((0.0, 1.0, 2.0, 4.0, 9.0, 9.0, -7.0, 3.0, 1e30, -1e30), 0.2, 19 / 6),
        ((*map(float, range(14)), 1e6), 0.2, 7.0),  # 0.2 of fifteen is three and not four: (3 + ... + 11) / 9
        ((math.inf, 1.0, 2.0), 0.5, 2.0),
    ],
)
def test_the_middle_by_hand(values: tuple[float, ...], trim: float, expected: float) -> None:
    assert middle(column(*values), trim)["m.A"].item() == pytest.approx(expected, rel=1e-6)


def test_a_name_that_a_change_lacks_counts_as_zero() -> None:
    parts = [{"m.A": torch.tensor([[2.0]])}, {"m.B": torch.tensor([[4.0]])}, {"m.B": torch.tensor([[6.0]])}]
    assert {name: t.item() for name, t in middle(parts, 0.5).items()} == {"m.A": 0.0, "m.B": 4.0}
    with pytest.raises(ValueError, match="no changes"):
        middle([], 0.5)


@settings(max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=9), st.data())
def test_a_minority_moves_no_coordinate_out_of_the_honest_range(values: list[float], data: st.DataObject) -> None:
    evil = data.draw(st.lists(st.floats(width=32, allow_nan=False), max_size=(len(values) - 1) // 2))
    order = data.draw(st.permutations(values + evil))
    slack = 1e-6 * max(map(abs, values))  # float32 of a mean in float64
    for trim in (0.5, min(0.5, (len(evil) + 0.01) / len(order))):
        assert min(values) - slack <= middle(column(*order), trim)["m.A"].item() <= max(values) + slack


def test_of_a_bit_each_a_median_is_a_vote() -> None:
    """Three of five say plus: the mean is a fifth of the scale, the median all of it. docs/security.md says so."""
    reach = up_codec(CODECS["default"], 3).reach(SMALL, SMALL, 1)
    parts = [{name: sign * t.float() for name, t in reach.items()} for sign in (1, 1, 1, -1, -1)]
    torch.testing.assert_close(middle(parts, 0.5)["q.A"], reach["q.A"].float())
    torch.testing.assert_close(torch.stack([p["q.A"] for p in parts]).mean(0), 0.2 * reach["q.A"].float())


# -- clipping ------------------------------------------------------------------------------------------------------


class Listening(Combine):
    """Its fold keeps what it is given."""

    def __init__(self) -> None:
        self.parts: list[tuple[Adapter, float, torch.Tensor | None]] = []

    def start(self, adapter: Adapter, round: int) -> Listening:
        return self

    def add(self, change: Adapter, weight: float, ranks: torch.Tensor | None = None) -> None:
        self.parts.append((change, weight, ranks))

    def value(self) -> Adapter:
        return {}


@pytest.mark.parametrize(
    ("most", "norms", "weights"), [(1.0, [5, 10, 10], [5, 20, 20]), (2.0, [5, 10, 20], [5, 20, 40])]
)
def test_clipping_by_hand(most: float, norms: list[float], weights: list[int]) -> None:
    changes = [{"m.A": torch.tensor([[3.0 * k, 4.0 * k]])} for k in (1, 2, 100)]
    inner, marks = Listening(), torch.tensor([True])
    fold = Clipped(inner).start({"m.A": torch.zeros(1, 2)}, 1)
    for change, weight in zip(changes, (5, 20, 4_000_000_000), strict=True):
        fold.add(change, weight, marks)
    fold.value()
    assert [algebra.norm(change) for change, _, _ in inner.parts] == pytest.approx([5, 10, 10])
    assert [weight for _, weight, _ in inner.parts] == [5, 20, 20]
    assert inner.parts[0][0] is changes[0]
    assert all(ranks is marks for _, _, ranks in inner.parts)


@pytest.mark.parametrize("kind", ["clip", "median", "trimmed"])
def test_two_liars_of_seven_do_not_take_the_mean_with_them(kind: str) -> None:
    """Five clients say about 1; one says -1e6, the other is of as many items as the door lets in, and says -1."""
    parts = list(zip(column(1.0, 1.1, 0.9, 1.2, 0.8, -1e6, -1.0), [10] * 6 + [1_000_000], strict=True))
    assert folded(WeightedMean(), parts, ZERO)["m.A"].item() < -1
    assert 0.3 < folded(made("fedit", kind).combine, parts, ZERO)["m.A"].item() < 1.2


# -- as methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "median", "trimmed"])
@pytest.mark.parametrize(
    ("method", "codec"), [("fedit", "default"), ("rolora", "unbiased-bf16"), ("fedsa-lora", "4bit")]
)
def test_rounds_go_on_and_no_answer_is_scaled_once_more(method: str, codec: str, kind: str) -> None:
    played = Federation(made(method, kind), codec)
    longest = 0.0
    for _ in range(3):
        before = played.state.everybody.known
        played.rounds(1)
        arrived = played.arrived().values()
        longest = max(algebra.norm(change) for change in arrived)
        moved = algebra.subtract(played.state.everybody.known, before)
        assert 0 < algebra.norm(moved) <= 1.05 * longest


# -- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "reason"),
    [
        ("local", "clip", "with local clients send nothing, so it has no effect; leave it out"),
        ("centralised", "trimmed", "trains one model on all data in one place; leave it out"),
        ("fedex-lora", "clip", "gets the others' updates and averages them itself.*leave it out, or use fedit"),
        ("fedex-lora", "median", "gets the others' updates and averages them itself.*leave it out, or use fedit"),
        ("flexlora", "median", "more than add a mean of changes.*use federation.robust = clip"),
        ("lora-fair", "trimmed", "more than add a mean of changes.*use federation.robust = clip"),
        (
            row(combine=WeightedMean(2.0)),
            "clip",
            "method.server_step = 2 would have no effect; leave it out, or leave out method.server_step",
        ),
        (row(order=Order(2)), "clip", "train in 2 turns.*leave it out, or set method.turns to 1"),
        (row(order=Order(30)), "median", "train in 30 turns.*leave it out, or set method.turns to 1"),
        (row(combine=TruncatedProduct(), ranks=Shares((1.0, 0.5))), "median", "send more than their changes"),
        ("ca-pfl", "median", "train in 6 turns.*leave it out, or set method.turns to 1"),
    ],
)
def test_what_it_means_nothing_for(method: str | Method, kind: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^federation\.robust.*{reason}"):
        made(method, kind)


def test_a_median_of_what_is_mostly_not_there() -> None:
    for codec in ("ternary", "fp32-sparse", "2bit"):
        up = up_codec(CODECS[codec], 3)
        with pytest.raises(ConfigError, match=r"different elements.*codec\.mask = random"):
            made("fedit", "median", up)
        made("fedit", "clip", up)
