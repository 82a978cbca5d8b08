"""Logits at answer positions, of so many at a time that they fit into little memory.

Long answers of a large vocabulary would otherwise take more memory than everything else: 32 answers of 256 tokens of
Llama 3 are 4 GiB of logits. Where all of a batch's logits are no more than ``MOST`` bytes they are computed at once, as
the model itself does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from capfl.model.hidden import Batch
from capfl.model.lora import AdaptedModel

MOST = 64 * 2**20  # bytes of logits, in float32, that there are at once


@torch.no_grad()
def logits_in_parts(model: AdaptedModel, batch: Batch) -> Iterator[Tensor]:
    """Logits (n, vocabulary) float32 of the batch's positions, in their order, one part after the other; no graph."""
    size = _size(model, batch)
    if len(batch.positions) <= size:
        yield model.logits(batch.ids, batch.positions, batch.hidden).float()
        return
    for states in _states(model, batch).split(size):
        yield model.head(states).float()


def mean_loss(model: AdaptedModel, batch: Batch) -> Tensor:
    """The mean cross-entropy over the batch's positions, a scalar with its graph, in nats.

    Of a batch in parts the graph keeps hidden states alone, and logits are computed again in the backward pass.
    """
    n, size = len(batch.positions), _size(model, batch)
    if n <= size:
        logits = model.logits(batch.ids, batch.positions, batch.hidden)
        return F.cross_entropy(logits.float(), batch.targets)

    def loss(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.head(states).float(), targets, reduction="sum")

    parts = zip(_states(model, batch).split(size), batch.targets.split(size), strict=True)
    sums = [cast(Tensor, checkpoint(loss, *part, use_reentrant=False)) for part in parts]
    return torch.stack(sums).sum() / n


def token_losses(model: AdaptedModel, batch: Batch) -> Tensor:
    """The cross-entropy at each of the batch's positions, (n,) float32 with its graph, in nats. In parts as above."""
    n, size = len(batch.positions), _size(model, batch)
    if n <= size:
        logits = model.logits(batch.ids, batch.positions, batch.hidden)
        return F.cross_entropy(logits.float(), batch.targets, reduction="none")

    def losses(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.head(states).float(), targets, reduction="none")

    parts = zip(_states(model, batch).split(size), batch.targets.split(size), strict=True)
    return torch.cat([cast(Tensor, checkpoint(losses, *part, use_reentrant=False)) for part in parts])


def _states(model: AdaptedModel, batch: Batch) -> Tensor:
    return model.states(batch.ids, batch.hidden).flatten(0, 1)[batch.positions]


def _size(model: AdaptedModel, batch: Batch) -> int:
    """How many positions are computed at once."""
    return max(1, MOST // (4 * model.vocabulary)) if model.has_head else len(batch.positions)
