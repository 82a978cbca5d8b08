"""Huber, Robust estimation of a location parameter, Ann. Math. Statist. 35(1), 1964, divided by its threshold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def huber(x: Tensor, delta: float) -> Tensor:
    """x² / (2 δ) where |x| < δ, and |x| - δ / 2 elsewhere: slope 1 far out for every δ > 0, unlike Huber's own.

    Same shape and floating-point dtype as x; gradients flow.
    """
    return F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none", beta=delta)


def shrinkage(x: Tensor, step: Tensor, delta: float) -> Tensor:
    """What x >= 0 is multiplied by to minimise step · huber(y) + (y - x)² / 2 over y: in (0, 1], so never too far.

    That is its proximal operator over x: δ / (δ + step) for x < δ + step, and 1 - step / x elsewhere (Parikh & Boyd,
    Proximal algorithms, 2014). ``step`` >= 0 and what is returned are like x in shape and floating-point dtype.
    """
    return 1 - step / torch.maximum(x, delta + step)
