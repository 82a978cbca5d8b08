"""Error compensation: what was sent and what is left sum to what changed, to the bit where float32 can say it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters import CODECS, KINDS, SMALL, same, total
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import Codec, compensate, up_codec
from capfl.wire.values import VALUES

ONE = {"m.A": torch.zeros(1, 3)}
THIRD = Codec(VALUES["fp32"], 1 / 3)  # one of three elements


def row(*values: float) -> Adapter:
    return {"m.A": torch.tensor([values])}


def sent(body: bytes, codec: Codec, template: Adapter = SMALL, round: int = 1) -> Adapter:
    return codec.decode(memoryview(body), template, round)


def grid(seed: int) -> list[Adapter]:
    """Five changes in steps of 1/256: fine enough to be interesting, coarse enough for float32 to sum exactly."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: t.shape for name, t in SMALL.items()}
    return [{n: torch.randint(-64, 65, s, generator=generator) / 256 for n, s in shapes.items()} for _ in range(5)]


def test_three_rounds_by_hand():
    body, residual = compensate(row(3.0, 2.0, -1.0), {}, THIRD, ONE, 1)
    assert same(sent(body, THIRD, ONE), row(3.0, 0.0, 0.0))
    assert same(residual, row(0.0, 2.0, -1.0))
    body, residual = compensate(row(1.0, 1.0, -1.0), residual, THIRD, ONE, 2)
    assert same(sent(body, THIRD, ONE), row(0.0, 3.0, 0.0))
    assert same(residual, row(1.0, 0.0, -2.0))
    body, residual = compensate(row(0.0, 0.0, 2.0), residual, THIRD, ONE, 3)
    assert same(sent(body, THIRD, ONE), row(1.0, 0.0, 0.0))
    assert residual == {}
    ternary = Codec(VALUES["ternary"])  # the error of the values is carried too
    body, residual = compensate(row(3.0, 2.0, -1.0), {}, ternary, ONE, 1)
    assert same(sent(body, ternary, ONE), row(2.0, 2.0, -2.0))
    assert same(residual, row(1.0, 0.0, 1.0))


def test_a_tensor_that_does_not_change_keeps_its_residual_and_arguments_stay():
    change, residual = {"q.A": torch.ones(2, 3)}, {"q.A": torch.ones(2, 3), "v.B": torch.full((2, 2), 4.0)}
    body, after = compensate(change, residual, Codec(VALUES["fp32"]), SMALL, 1)
    assert same(sent(body, Codec(VALUES["fp32"])), {"q.A": torch.full((2, 3), 2.0)})
    assert same(after, {"v.B": residual["v.B"]})
    assert same(change, {"q.A": torch.ones(2, 3)})
    assert same(residual, {"q.A": torch.ones(2, 3), "v.B": torch.full((2, 2), 4.0)})


def test_what_is_not_finite_is_refused():
    with pytest.raises(WireError, match="not finite"):
        compensate(row(1.0, float("nan"), 0.0), {}, THIRD, ONE, 1)
    with pytest.raises(WireError, match="not finite"):
        compensate(row(3e38, 0.0, 0.0), row(3e38, 0.0, 0.0), THIRD, ONE, 1)


FEEDBACK = {name: codec for name in CODECS if not (codec := up_codec(CODECS[name], 0)).unbiased} | {
    f"{kind}, {mask}": Codec(VALUES[kind], density, mask, seed=3)
    for kind in KINDS for mask, density in (("top", 0.15), ("random", 0.5))
}  # fmt: skip


@pytest.mark.parametrize("name", FEEDBACK)
def test_sent_and_residual_sum_to_the_changes_exactly(name):
    """Also what importance drops, and what the sender lacks."""
    important, lacks = np.array([4.0, 0, 2, 1]), np.array([True, True, False, True])
    for importance, alive in ((None, None), (important, None), (important, lacks)):
        changes, residual, messages = grid(0), dict[str, torch.Tensor](), []
        for round, change in enumerate(changes, 1):
            body, residual = compensate(change, residual, FEEDBACK[name], SMALL, round, importance, alive)
            messages.append(sent(body, FEEDBACK[name], round=round))
        assert same(total([*messages, residual]), total(changes))
        assert importance is None or not any(m["q.A"][1].any() or m["q.B"][:, 1].any() for m in messages)
        assert alive is None or not any(m["v.A"][0].any() or m["v.B"][:, 0].any() for m in messages)
        assert residual or not FEEDBACK[name].exact or importance is not None
