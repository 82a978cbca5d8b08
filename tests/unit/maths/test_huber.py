"""Huber's function: both branches by hand, joined without a step or a kink at every threshold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.maths.huber import huber

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
