r"""Gradients that are private to single items: DP-SGD, Abadi et al., arXiv:1607.00133.

.. math:: \tilde g = \frac{1}{q n} \Big( \sum_{i \in S} g_i \min(1, C / \lVert g_i \rVert)
          + \mathcal{N}(0, z^2 C^2 I) \Big)

:math:`g_i` is the gradient of item i's own loss, the mean over its answer tokens, by all factors that are trained. S is
a batch by chance (``data.batches.by_chance``), and :math:`q n` the number of items that are expected in it. An empty
batch makes a step of noise alone. What the optimiser does with :math:`\tilde g` costs no privacy.

Every row of a pass meets a copy of the factors of its own (``model.per_row``), so one backward pass gives the gradients
of all its rows. An item whose gradient is not finite counts as zero: to stop for it would give it away.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from capfl.config.schema import TrainConfig
from capfl.maths.privacy import gaussian
from capfl.model.hidden import Batch, HiddenCache, Rows
from capfl.model.lora import AdaptedModel
from capfl.model.parts import token_losses
from capfl.model.per_row import own_adapters
from capfl.types import Adapter


@dataclass(frozen=True)
class Protection:
    """How gradients are clipped and noised.

    Attributes:
        clip: C.
        noise: z, the standard deviation of the noise in units of C.
        expected: items in a batch, on average: q n.
    """

    clip: float
    noise: float
    expected: float


def noisy_gradients(
    model: AdaptedModel,
    cache: HiddenCache,
    data: Rows,
    indices: Sequence[int],
    factors: Adapter,
    protection: Protection,
    config: TrainConfig,
) -> None:
    """Leave the private gradient of a batch, which may be empty, in those factors that are trained.

    It is computed in parts of at most as many rows as those of a plain step of ``config.batch_size`` rows.
    """
    size = math.ceil(config.batch_size / config.accumulate)
    live = {name: p for name, p in factors.items() if p.requires_grad}
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in live.items()}
    for first in range(0, len(indices), size):
        batch = data.batch(model, cache, indices[first : first + size])
        for name, t in clipped_sum(item_gradients(model, batch, factors), protection.clip).items():
            total[name] += t
    for name, p in live.items():
        noise = protection.clip * protection.noise * gaussian(p.numel(), os.urandom).reshape(p.shape)
        p.grad = ((total[name] + noise) / protection.expected).to(p.device, torch.float32)


def item_gradients(model: AdaptedModel, batch: Batch, factors: Adapter) -> Adapter:
    """The gradient of each row's own loss by those factors that are trained, (rows, *factor) float32 on the CPU."""
    n = len(batch.ids)
    own = {name: p.detach().expand(n, *p.shape) for name, p in factors.items()}
    leaves = {name: own[name].clone().requires_grad_() for name, p in factors.items() if p.requires_grad}
    own |= leaves
    with own_adapters(model, [{name: t[row] for name, t in own.items()} for row in range(n)], [1] * n):
        of_rows = token_losses(model, batch).split(batch.counts)
        torch.stack([losses.mean() for losses in of_rows]).sum().backward()  # a row's factors are in its own loss alone
    return {name: leaf.new_zeros(leaf.shape) if leaf.grad is None else leaf.grad.cpu() for name, leaf in leaves.items()}


def clipped_sum(each: Mapping[str, Tensor], clip: float) -> Adapter:
    """The sum, float64, of rows' gradients (rows, ...) that are none longer than ``clip`` over all names together.

    Rows that are not finite are left out.
    """
    squares = torch.stack([t.double().flatten(1).square().sum(1) for t in each.values()]).sum(0)
    finite = squares.isfinite()
    share = (clip / squares[finite].sqrt()).clamp(max=1.0)  # of a gradient of zero: 1
    return {name: torch.tensordot(share, t[finite].double(), 1) for name, t in each.items()}
