"""Robust means: exact on few numbers, within the honest ones, and refused where they mean nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import CODECS, SMALL, normal, same
from capfl import adapter as algebra
from capfl.config import load_config
from capfl.config.schema import FederationConfig, MethodConfig
from capfl.errors import ConfigError
from capfl.methods import METHODS, build
from capfl.methods.fedit import fedit
from capfl.methods.robust import clipped, middle, robust
from capfl.types import Adapter, ServerState, Update
from capfl.wire import Codec, up_codec
from fake import CLIENTS, Fake, bits, initial

FP32 = up_codec(CODECS["fp32"], 3)
MEANS = ("fedit", "fedprox", "ffa-lora", "rolora", "fedsa-lora", "ditto")


def column(*values: float) -> list[Adapter]:
    return [{"m.A": torch.tensor([[v]])} for v in values]


def update(change: Adapter, n_train: int = 10) -> Update:
    return Update(1, "a", change, n_train, 1, 1.0)


def made(method: str, kind: str, up: Codec = FP32, **config: object) -> object:
    return robust(build(MethodConfig(name=method)), FederationConfig(robust=kind, **config), up)  # type: ignore[arg-type]


# -- the middle ----------------------------------------------------------------------------------------


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
        (tuple(map(float, range(15))), 0.2, 7.0),
        ((math.inf, 1.0, 2.0), 0.5, 2.0),
    ],
)
def test_the_middle_by_hand(values: tuple[float, ...], trim: float, expected: float) -> None:
    assert middle(column(*values), trim)["m.A"].item() == pytest.approx(expected, rel=1e-6)


def test_a_trimmed_share_of_fifteen_is_three_and_not_four() -> None:
    values = [float(v) for v in range(14)] + [1e6]
    assert middle(column(*values), 0.2)["m.A"].item() == pytest.approx(sum(range(3, 12)) / 9)


def test_a_name_that_a_change_lacks_counts_as_zero() -> None:
    parts = [{"m.A": torch.tensor([[2.0]])}, {"m.B": torch.tensor([[4.0]])}, {"m.B": torch.tensor([[6.0]])}]
    assert {name: t.item() for name, t in middle(parts, 0.5).items()} == {"m.A": 0.0, "m.B": 4.0}


def test_there_is_no_middle_of_nothing() -> None:
    with pytest.raises(ValueError, match="no changes"):
        middle([], 0.5)


honest = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=9)


@given(honest, st.data())
def test_a_minority_moves_no_coordinate_out_of_the_honest_range(values: list[float], data: st.DataObject) -> None:
    evil = data.draw(st.lists(st.floats(width=32, allow_nan=False), max_size=(len(values) - 1) // 2))
    order = data.draw(st.permutations(values + evil))
    found = middle(column(*order), 0.5)["m.A"].item()
    assert min(values) <= found <= max(values)
    trim = (len(evil) + 0.01) / len(order)
    if trim < 0.5:
        # float32 of a mean in float64
        low, high = min(values), max(values)
        slack = 1e-6 * max(abs(low), abs(high))
        assert low - slack <= middle(column(*order), trim)["m.A"].item() <= high + slack


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9), st.randoms(), st.floats(0.01, 0.49))
def test_the_order_of_clients_does_not_matter(values: list[float], random: object, trim: float) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert torch.equal(middle(column(*values), trim)["m.A"], middle(column(*shuffled), trim)["m.A"])


# -- clipping ----------------------------------------------------------------------------------------------


def test_clipping_by_hand() -> None:
    short, median, long = ({"m.A": torch.tensor([[3.0 * k, 4.0 * k]])} for k in (1, 2, 100))
    parts = clipped([update(short, 5), update(median, 20), update(long, 4_000_000_000)], 1.0)
    assert [algebra.norm(part.adapter) for part in parts] == pytest.approx([5, 10, 10])
    assert [part.n_train for part in parts] == [5, 20, 20]
    assert parts[0].adapter is short
    torch.testing.assert_close(parts[2].adapter["m.A"], torch.tensor([[6.0, 8.0]]))
    twice = clipped([update(short, 5), update(median, 20), update(long, 4_000_000_000)], 2.0)
    assert [algebra.norm(part.adapter) for part in twice] == pytest.approx([5, 10, 20])
    assert [part.n_train for part in twice] == [5, 20, 40]


def test_clipping_where_most_have_nothing_to_say() -> None:
    nothing = {"m.A": torch.zeros(1, 2)}
    parts = clipped([update(nothing), update(nothing), update({"m.A": torch.ones(1, 2)})], 1.0)
    assert all(not part.adapter["m.A"].any() for part in parts)


# -- as methods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "median", "trimmed"])
@pytest.mark.parametrize("method", MEANS)
def test_of_equal_changes_every_mean_is_the_same(method: str, kind: str) -> None:
    start = ServerState(0, normal(1), known={})
    change = normal(2)
    again = made(method, kind).aggregate(start, (replace(update(change), client=c) for c in "abcde"))  # type: ignore[attr-defined]
    for name, t in algebra.add(start.adapter, change).items():
        torch.testing.assert_close(again.adapter[name], t)


def test_a_median_counts_every_client_once() -> None:
    start = ServerState(0, {"m.A": torch.zeros(1, 1)}, known={})
    updates = [update(c, n) for c, n in zip(column(1.0, 2.0, 100.0), (1, 1, 1_000_000), strict=True)]
    assert made("fedit", "median").aggregate(start, updates).adapter["m.A"].item() == 2.0  # type: ignore[attr-defined]
    assert made("fedit", "trimmed").aggregate(start, updates).adapter["m.A"].item() == 2.0  # type: ignore[attr-defined]


def test_none_is_the_method_itself() -> None:
    method = fedit()
    assert robust(method, FederationConfig(), FP32) is method


def test_a_robust_mean_has_no_error_of_products() -> None:
    assert fedit().exact is False
    assert made("fedit", "clip").exact is None  # type: ignore[attr-defined]
    assert made("fedit", "median").exact is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["clip", "median", "trimmed"])
@pytest.mark.parametrize("codec", ["fp32", "default", "unbiased-bf16", "random", "4bit"])
@pytest.mark.parametrize("method", ["fedit", "rolora", "ffa-lora", "fedsa-lora"])
def test_rounds_go_on_as_they_should(method: str, codec: str, kind: str) -> None:
    """Clients know what the server says that they know, and nobody is told what nobody has sent."""
    fake = Fake(method, codec)
    config = FederationConfig(robust=kind)  # type: ignore[arg-type]
    fake.agreement = replace(fake.agreement, method=robust(fake.agreement.method, config, fake.agreement.up))
    fake.play(4)
    for name in CLIENTS:
        assert fake.memory[name].steps == 8
    assert bits(fake.state.adapter) != bits(initial())
    if fake.agreement.up.unbiased:  # the answer was not scaled once more
        moved = max(float(t.abs().max()) for t in algebra.subtract(fake.state.adapter, initial()).values())
        sent = max(float(t.abs().max()) for parts in fake.arrived.values() for part in parts for t in part.values())
        assert moved <= 4 * sent


def test_clip_works_with_every_method_whose_server_makes_a_mean() -> None:
    for name in METHODS:
        if name not in ("local", "centralised", "fedex-lora", "flora"):
            fake = Fake(name, "default")
            method = robust(fake.agreement.method, FederationConfig(robust="clip"), fake.agreement.up)
            fake.agreement = replace(fake.agreement, method=method)
            fake.play(3)
            assert not same(fake.state.adapter, initial()), name


# -- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "reason"),
    [
        ("local", "clip", "clients send nothing that it would be about"),
        ("local", "median", "clients send nothing that it would be about"),
        ("centralised", "clip", "trains one model on all data in one place"),
        ("centralised", "trimmed", "trains one model on all data in one place"),
        ("fedex-lora", "clip", "gets the others' updates as they came.*leave it out, or use fedit"),
        ("fedex-lora", "median", "gets the others' updates as they came.*leave it out, or use fedit"),
        ("flora", "clip", "gets the others' updates as they came.*leave it out, or use fedit"),
        ("flora", "trimmed", "gets the others' updates as they came.*leave it out, or use fedit"),
        ("flexlora", "median", "more with changes than to add their mean.*use federation.robust = clip"),
        ("lora-fair", "trimmed", "more with changes than to add their mean.*use federation.robust = clip"),
        ("flasc", "median", "more with changes than to add their mean.*use federation.robust = clip"),
        ("hetlora", "trimmed", "say more than their changes.*use federation.robust = clip"),
        ("ca-pfl", "median", "say more than their changes.*use federation.robust = clip"),
    ],
)
def test_what_it_means_nothing_for(method: str, kind: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        made(method, kind)


@pytest.mark.parametrize("codec", ["ternary", "fp32-sparse", "2bit", "global"])
def test_a_median_of_what_is_mostly_not_there(codec: str) -> None:
    up = up_codec(CODECS[codec], 3)
    with pytest.raises(ConfigError, match=r"other elements.*codec\.mask = random"):
        made("fedit", "median", up)
    made("fedit", "clip", up)


def test_a_share_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"federation\.robust_trim"):
        load_config(None, {"federation.robust_trim": 0.5})


def test_of_a_bit_each_a_median_is_a_vote() -> None:
    """Three of five say plus: the mean is a fifth of the scale, the median all of it. docs/security.md says so."""
    up = up_codec(CODECS["default"], 3)
    reach = up.reach(SMALL, SMALL, 1)
    signs = [1.0, 1.0, 1.0, -1.0, -1.0]
    parts = [{name: s * t.float() for name, t in reach.items()} for s in signs]
    found = middle(parts, 0.5)
    assert all(torch.equal(found[name], t.float()) for name, t in reach.items())
    mean = algebra.weighted_mean((part, 1.0) for part in parts)
    torch.testing.assert_close(mean["q.A"], 0.2 * reach["q.A"].float())
