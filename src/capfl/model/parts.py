"""Logits at answer positions, of so many at a time that they fit into little memory.

Long answers of a large vocabulary would otherwise take more memory than everything else: 32 answers of 256 tokens of
Llama 3 are 4 GiB of logits. Where a batch has no more positions than are computed at once, the model itself makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from capfl.machine import return_memory
from capfl.model.hidden import Batch
from capfl.model.lora import AdaptedModel

MOST = 16 * 2**20  # bytes of logits, in float32, that there are at once, but
LEAST = (
    128  # positions at once: products of fewer rows with the weights of a large head take two to three times as long
)


def at_once(vocabulary: int) -> int:
    """How many positions' logits are computed at once."""
    return max(LEAST, MOST // (4 * vocabulary))


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
    """The mean cross-entropy over the batch's positions, a scalar with its graph, in nats."""
    if len(batch.positions) <= _size(model, batch):
        logits = model.logits(batch.ids, batch.positions, batch.hidden)
        return F.cross_entropy(logits.float(), batch.targets)
    return token_losses(model, batch).mean()


def token_losses(model: AdaptedModel, batch: Batch) -> Tensor:
    """The cross-entropy at each of the batch's positions, (n,) float32 with its graph, in nats."""
    size = _size(model, batch)
    if len(batch.positions) <= size:
        logits = model.logits(batch.ids, batch.positions, batch.hidden)
        return F.cross_entropy(logits.float(), batch.targets, reduction="none")
    apply = cast(Callable[..., Tensor], _LossesOfStates.apply)
    return apply(_states(model, batch), batch.targets, model.head, size)


class _LossesOfStates(torch.autograd.Function):
    """Losses (n,) of states (n, hidden), made of so many positions' logits at a time.

    The head is frozen, and a position's loss depends on its own state alone. So its gradient is taken as soon as its
    logits are there, and all that the graph keeps is that gradient, (n, hidden): logits are neither kept nor computed
    again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], size: int) -> Tensor:
        losses, gradients = [], []
        for part, wanted in zip(states.detach().split(size), targets.split(size), strict=True):
            part = part.requires_grad_()
            with torch.enable_grad():
                logits = head(part).float()
            scores = logits.detach().log_softmax(-1)
            at = torch.arange(len(wanted), device=wanted.device), wanted
            losses.append(-scores[at])
            scores.exp_()[at] -= 1  # the gradient of the losses by the logits, in the place of what is not needed again
            gradients += torch.autograd.grad(logits, part, scores)
        return_memory()  # what the layers below have freed; else a step on all layers takes a fifth more memory
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (of_losses[0][:, None] * gradients).to(gradients.dtype), None, None, None


def _states(model: AdaptedModel, batch: Batch) -> Tensor:
    return model.states(batch.ids, batch.hidden).flatten(0, 1)[batch.positions]


def _size(model: AdaptedModel, batch: Batch) -> int:
    """How many positions are computed at once."""
    return at_once(model.vocabulary) if model.has_head else len(batch.positions)
