"""Huber's function: both branches by hand, joined without a step or a kink at every threshold; and what lowers it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.maths.huber import huber, shrinkage

deltas = [1e-6, 0.01, 0.1, 0.5, 1.0, 3.0, 1e4]


def test_values_by_hand():
    x = torch.tensor([0.0, 1.0, -1.0, 2.0, 4.0, -4.0], dtype=torch.float64)
    assert huber(x, 2.0).tolist() == [0.0, 0.25, 0.25, 1.0, 3.0, 3.0]  # x²/4 below 2, |x| - 1 above
    assert huber(x, 0.5).tolist() == [0.0, 0.75, 0.75, 1.75, 3.75, 3.75]


@pytest.mark.parametrize("delta", deltas)
def test_it_is_continuous_and_smooth_at_the_threshold(delta):
    step = 1e-9
    x = torch.tensor([delta * (1 - step), delta, delta * (1 + step)], dtype=torch.float64).requires_grad_()
    y = huber(x, delta)
    y.sum().backward()
    assert y.tolist() == pytest.approx([delta / 2] * 3, rel=1e-8)
    assert x.grad.tolist() == pytest.approx([1.0] * 3, rel=1e-8)


@given(st.floats(-1e6, 1e6), st.sampled_from(deltas))
def test_it_lies_between_the_absolute_value_and_half_a_threshold_less(x, delta):
    y = huber(torch.tensor(x, dtype=torch.float64), delta).item()
    assert max(0, abs(x) - delta / 2) - 1e-9 <= y <= abs(x)
    assert y == huber(torch.tensor(-x, dtype=torch.float64), delta).item()


def test_shape_and_dtype_are_kept():
    assert huber(torch.zeros(2, 3), 1.0).shape == (2, 3)
    assert huber(torch.zeros(2), 1.0).dtype == torch.float32


@pytest.mark.parametrize("step", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_the_shrunk_value_is_the_best_there_is(step, delta):
    """Of all y on a fine grid, against step · huber(y) + (y - x)² / 2 on both branches."""
    x, y = (torch.linspace(0, 4, n, dtype=torch.float64) for n in (9, 40001))
    best = y[(step * huber(y, delta) + (y - x[:, None]) ** 2 / 2).argmin(1)]
    found = x * shrinkage(x, torch.full_like(x, step), delta)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-4)


def test_shrinkage_by_hand():
    x = torch.tensor([0.0, 1.0, 3.0, 6.0])
    assert shrinkage(x, torch.full_like(x, 2.0), 1.0).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert shrinkage(x, torch.full_like(x, 1e30), 1.0).tolist() == pytest.approx([0.0] * 4)  # and never below
