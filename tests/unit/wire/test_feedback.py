"""Error compensation: what was sent and what is left sum to what changed, to the bit where float32 can say it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import CODECS, KINDS, SMALL, normal, same, total
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import Codec, compensate, up_codec
from capfl.wire.values import VALUES

ONE = {"m.A": torch.zeros(1, 3)}


def row(*values: float) -> Adapter:
    return {"m.A": torch.tensor([values])}


def sent(body: bytes, codec: Codec, template: Adapter = SMALL, round: int = 1) -> Adapter:
    return codec.decode(memoryview(body), template, round)


def play(changes: list[Adapter], codec: Codec) -> tuple[list[Adapter], Adapter]:
    """All that was sent, and the residual at the end."""
    messages, residual = [], {}
    for round, change in enumerate(changes, 1):
        body, residual = compensate(change, residual, codec, SMALL, round)
        messages.append(sent(body, codec, round=round))
    return messages, residual


def grid(seed: int) -> list[Adapter]:
    """Five changes in steps of 1/256: fine enough to be interesting, coarse enough for float32 to sum exactly."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: t.shape for name, t in SMALL.items()}
    return [{n: torch.randint(-64, 65, s, generator=generator) / 256 for n, s in shapes.items()} for _ in range(5)]


# -- by hand ---------------------------------------------------------------------------------------------


def test_three_rounds_by_hand():
    codec = Codec(VALUES["fp32"], 1 / 3)  # one of three elements
    body, residual = compensate(row(3.0, 2.0, -1.0), {}, codec, ONE, 1)
    assert same(sent(body, codec, ONE), row(3.0, 0.0, 0.0))
    assert same(residual, row(0.0, 2.0, -1.0))
    body, residual = compensate(row(1.0, 1.0, -1.0), residual, codec, ONE, 2)
    assert same(sent(body, codec, ONE), row(0.0, 3.0, 0.0))
    assert same(residual, row(1.0, 0.0, -2.0))
    body, residual = compensate(row(0.0, 0.0, 2.0), residual, codec, ONE, 3)
    assert same(sent(body, codec, ONE), row(1.0, 0.0, 0.0))
    assert residual == {}


def test_the_error_of_the_values_is_carried_too():
    codec = Codec(VALUES["ternary"])
    body, residual = compensate(row(3.0, 2.0, -1.0), {}, codec, ONE, 1)
    assert same(sent(body, codec, ONE), row(2.0, 2.0, -2.0))
    assert same(residual, row(1.0, 0.0, 1.0))


def test_a_tensor_that_does_not_change_keeps_its_residual():
    residual = {"q.A": torch.ones(2, 3), "v.B": torch.full((2, 2), 4.0)}
    body, after = compensate({"q.A": torch.ones(2, 3)}, residual, Codec(VALUES["fp32"]), SMALL, 1)
    assert same(sent(body, Codec(VALUES["fp32"])), {"q.A": torch.full((2, 3), 2.0)})
    assert same(after, {"v.B": residual["v.B"]})


def test_arguments_are_not_changed():
    change, residual = normal(0), normal(1)
    compensate(change, residual, Codec(VALUES["ternary"], 0.3), SMALL, 1)
    assert same(change, normal(0))
    assert same(residual, normal(1))


def test_what_is_not_finite_is_refused():
    with pytest.raises(WireError, match="not finite"):
        compensate(row(1.0, float("nan"), 0.0), {}, Codec(VALUES["fp32"]), ONE, 1)
    with pytest.raises(WireError, match="not finite"):
        compensate(row(3e38, 0.0, 0.0), row(3e38, 0.0, 0.0), Codec(VALUES["fp32"]), ONE, 1)


# -- the identity ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["top", "random"])
@pytest.mark.parametrize("density", [0.05, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_sent_and_residual_sum_to_the_changes_exactly(kind, density, mask):
    for seed in range(8):
        changes = grid(seed)
        messages, residual = play(changes, Codec(VALUES[kind], density, mask=mask, seed=seed))
        assert same(total([*messages, residual]), total(changes))


FEEDBACK = {name: codec for name in CODECS if not (codec := up_codec(CODECS[name], 0)).unbiased}


@pytest.mark.parametrize("name", FEEDBACK)
def test_every_codec_of_a_config_keeps_it(name):
    changes = grid(0)
    messages, residual = play(changes, FEEDBACK[name])
    assert same(total([*messages, residual]), total(changes))


@settings(max_examples=50)
@given(st.integers(0, 999), st.sampled_from(KINDS), st.floats(0.01, 1.0), st.floats(-12, 12))
def test_for_any_numbers_within_rounding(seed, kind, density, magnitude):
    changes = [normal(1000 * seed + r, scale=10.0**magnitude) for r in range(6)]
    messages, residual = play(changes, Codec(VALUES[kind], density))
    got, expected = total([*messages, residual]), total(changes)
    for name in SMALL:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-5 * 10.0**magnitude)


def test_an_exact_codec_leaves_nothing():
    assert play(grid(3), Codec(VALUES["fp32"]))[1] == {}


def test_a_small_change_arrives_in_the_end():
    """Without a residual the second element would never be sent."""
    codec, arrived, residual = Codec(VALUES["fp32"], 1 / 3), row(0.0, 0.0, 0.0), {}
    for round in range(1, 12):
        body, residual = compensate(row(1.0, 0.25, 0.0), residual, codec, ONE, round)
        arrived = total([arrived, sent(body, codec, ONE)], ONE)
    assert arrived["m.A"][0, 1] == 2.5 > 0  # ten rounds of it, in two messages
