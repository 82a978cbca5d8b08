"""Local training: some steps of AdamW on the factors of one client."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch

from capfl import adapter as algebra
from capfl.config.schema import TrainConfig
from capfl.errors import TrainingError
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.lora import AdaptedModel
from capfl.model.parts import mean_loss
from capfl.types import Adapter, Penalty, Trained


def local_steps(
    model: AdaptedModel,
    cache: HiddenCache,
    data: Rows,
    plan: Sequence[Sequence[int]],
    start: Adapter,
    config: TrainConfig,
    *,
    first_step: int = 0,
    rate: float = 1.0,
    trainable: Callable[[str], bool] = lambda name: True,
    penalty: Penalty | None = None,
) -> Trained:
    """Train from ``start`` on the batches of ``plan``, one step each. ``start`` is not changed, nor is its patch.

    The optimiser is new each time, as in FedAvg. A step may be computed in ``config.accumulate`` parts: its gradient is
    that of the mean loss over all answer tokens of the batch, whatever the number of parts.

    Args:
        first_step: the number of the first step, for error messages.
        rate: what the learning rate is multiplied by, see ``scheduled``.
        penalty: follows every step of the optimiser, with the same learning rate.

    Raises:
        TrainingError: a loss or the trained adapter is not finite; says at which step.
    """
    model.write(start)
    names = [name for name in model.parameters if trainable(name)]
    live = {name: model.parameters[name] for name in names}
    for name, p in model.parameters.items():
        p.requires_grad_(name in live)
    constants = {name: t.to(model.base.device) for name, t in penalty.constants.items()} if penalty else {}
    learning_rate = rate * config.learning_rate
    optimiser = torch.optim.AdamW(live.values(), lr=learning_rate, weight_decay=0.0)
    losses, squares = [], torch.zeros(())
    model.train(True, config.checkpointing)
    try:
        for step, indices in enumerate(plan, start=first_step):
            parts = _split(indices, config.accumulate)
            tokens = sum(len(data.rows[i].targets) for i in indices)
            optimiser.zero_grad(set_to_none=True)
            losses.append(0.0)
            for part in parts:
                batch = data.batch(model, cache, part)
                loss = mean_loss(model, batch) * (len(batch.targets) / tokens)
                losses[-1] += float(loss.detach())
                if not math.isfinite(losses[-1]):
                    raise TrainingError(
                        f"the loss is {losses[-1]} at step {step}; lower train.learning_rate, "
                        "or use model.dtype = float32 or bfloat16"
                    )
                loss.backward()
            squares = squares + _by_rank(dict(model.parameters), live.keys()).square()
            torch.nn.utils.clip_grad_norm_(live.values(), config.max_grad_norm)
            optimiser.step()
            if penalty:
                with torch.no_grad():
                    for name, t in penalty.step(dict(live), constants, learning_rate).items():
                        live[name].copy_(t)
    finally:
        model.train(False)
        optimiser.zero_grad(set_to_none=True)
    trained = start | algebra.copy(dict(model.parameters))
    if not all(bool(t.isfinite().all()) for t in trained.values()):  # the last step's, which no later loss shows
        step = first_step + len(plan) - 1
        raise TrainingError(f"the adapter is not finite after step {step}; lower train.learning_rate")
    return Trained(trained, tuple(losses), (squares / len(plan)).sqrt().cpu())


def _split(indices: Sequence[int], parts: int) -> list[Sequence[int]]:
    """A batch in at most so many parts of as equal size as can be."""
    size = math.ceil(len(indices) / parts)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _by_rank(factors: Adapter, trained: Collection[str]) -> torch.Tensor:
    """The derivative of the loss by a factor on each rank's update, (n,) float32; zero where A and B are frozen.

    It is sum_o b_o dL/db_o, and just as well sum_i a_i dL/da_i. The sensitivity by which AdaLoRA (Zhang et al.,
    arXiv:2303.10512, eq. 8) prunes, for a rank in place of a number.
    """

    def of(factor: torch.Tensor, name: str, axis: int) -> torch.Tensor | None:
        if name not in trained or factor.grad is None:
            return None
        return (factor.detach() * factor.grad).sum(axis).float()

    parts = []
    for module, down, up in algebra.factors(factors):
        by_up, by_down = of(up, f"{module}.B", 0), of(down, f"{module}.A", 1)
        parts.append(by_up if by_up is not None else by_down if by_down is not None else up.new_zeros(up.shape[1]))
    return torch.cat(parts) if parts else torch.zeros(0)


def scheduled(schedule: str, round: int, rounds: int) -> float:
    """The factor of the learning rate in a round (1, 2, ...): 1 in the first, close to 0 in the last.

    What comes after the last round, such as the steps that make a personal model, goes on with its factor.
    """
    left = (rounds - min(round, rounds) + 1) / rounds
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[schedule]
