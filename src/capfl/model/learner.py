"""One client's factors while they are trained: its optimiser, and what its steps have shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from capfl import adapter as algebra
from capfl.config.schema import TrainConfig
from capfl.errors import TrainingError
from capfl.model.hidden import Rows
from capfl.model.items import Protection
from capfl.types import Adapter, Penalty, Trained


@dataclass(frozen=True)
class Job:
    """One client's local steps.

    Attributes:
        data: the client's rows.
        plan: the rows of each step.
        start: the adapter that it starts from, which is not changed.
        first_step: the number of the first step, for error messages.
        rate: what the learning rate is multiplied by, see ``model.train.scheduled``.
        trainable: which factors are trained, by their names.
        penalty: follows every step of the optimiser, with the same learning rate.
        protection: of single rows, which the plan's batches are then drawn for; None: none.
    """

    data: Rows
    plan: Sequence[Sequence[int]]
    start: Adapter
    first_step: int = 0
    rate: float = 1.0
    trainable: Callable[[str], bool] = lambda name: True
    penalty: Penalty | None = None
    protection: Protection | None = None


class Learner:
    """AdamW on the factors of one client. The optimiser is new each time, as in FedAvg.

    Nothing here waits for the device: the loss of a step is a number when it gets here.

    Args:
        factors: A and B of every module, float32, where the model is, with the values of ``job.start``; they are
            changed in place.
    """

    def __init__(self, factors: Mapping[str, nn.Parameter], job: Job, config: TrainConfig) -> None:
        self.factors: Adapter = dict(factors)
        self._job, self._config, self._rate = job, config, job.rate * config.learning_rate
        self._live = {name: p for name, p in factors.items() if job.trainable(name)}
        for name, p in factors.items():
            p.requires_grad_(name in self._live)
        device = next(iter(factors.values())).device
        self._constants = {name: t.to(device) for name, t in job.penalty.constants.items()} if job.penalty else {}
        self._optimiser = torch.optim.AdamW(self._live.values(), lr=self._rate, weight_decay=0.0)
        self._losses: list[float] = []
        self._squares = torch.zeros(())

    def clear(self) -> None:
        """Forget all gradients."""
        self._optimiser.zero_grad(set_to_none=True)

    def step(self, losses: Sequence[float]) -> None:
        """Take the step that the gradients ask for.

        Args:
            losses: of the step's parts, nats a token, which sum to the step's; none where nobody may know.

        Raises:
            TrainingError: their sum is not finite; the factors are as before.
        """
        loss = 0.0
        for part in losses:  # sum() adds floats up in another way from Python 3.12 on
            loss += part
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {self._next_step}; lower train.learning_rate, "
                "or use model.dtype = float32 or bfloat16"
            )
        self._losses.append(loss)
        self._squares = self._squares + _by_rank(self.factors, self._live.keys()).square()
        torch.nn.utils.clip_grad_norm_(self._live.values(), self._config.max_grad_norm)
        self._optimiser.step()
        if self._job.penalty:
            with torch.no_grad():
                for name, t in self._job.penalty.step(dict(self._live), self._constants, self._rate).items():
                    self._live[name].copy_(t)

    def trained(self) -> Trained:
        """What the steps have led to; of the start what is no factor, such as a patch, stays.

        Raises:
            TrainingError: it is not finite.
        """
        trained = self._job.start | algebra.copy(self.factors)
        if not all(bool(t.isfinite().all()) for t in trained.values()):  # the last step's, which no later loss shows
            raise TrainingError(
                f"the adapter is not finite after step {self._next_step - 1}; lower train.learning_rate"
            )
        return Trained(trained, tuple(self._losses), (self._squares / len(self._losses)).sqrt().cpu())

    @property
    def _next_step(self) -> int:
        return self._job.first_step + len(self._losses)


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
