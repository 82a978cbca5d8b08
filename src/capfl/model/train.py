"""Local training: some steps of AdamW on the factors of one client."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from capfl.config.schema import TrainConfig
from capfl.model.hidden import HiddenCache
from capfl.model.items import noisy_gradients
from capfl.model.learner import Job, Learner
from capfl.model.lora import AdaptedModel
from capfl.model.parts import mean_loss
from capfl.types import Trained


def local_steps(model: AdaptedModel, cache: HiddenCache, job: Job, config: TrainConfig) -> Trained:
    """Train on the batches of a job, one step each.

    A step may be computed in ``config.accumulate`` parts: its gradient is that of the mean loss over all answer tokens
    of the batch, whatever the number of parts. Where rows are protected (``model.items``), it has noise, and losses are
    not kept, for they have none.

    Raises:
        TrainingError: a loss or the trained adapter is not finite; says at which step.
    """
    model.write(job.start)
    learner = Learner(model.parameters, job, config)
    model.train(True, config.checkpointing)
    try:
        for indices in job.plan:
            learner.clear()
            if job.protection:
                noisy_gradients(model, cache, job.data, indices, learner.factors, job.protection, config)
                learner.step([])
                continue
            tokens = sum(len(job.data.rows[i].targets) for i in indices)
            losses = []
            for part in split(indices, config.accumulate):
                batch = job.data.batch(model, cache, part)
                loss = mean_loss(model, batch) * (len(batch.targets) / tokens)
                loss.backward()
                losses.append(loss.detach())
            learner.step(torch.stack(losses).tolist())  # the one time in a step that the device is waited for
    finally:
        model.train(False)
        learner.clear()
    return learner.trained()


def split(indices: Sequence[int], parts: int) -> list[Sequence[int]]:
    """A batch in at most so many parts of as equal size as can be."""
    size = math.ceil(len(indices) / parts)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def scheduled(schedule: str, round: int, rounds: int) -> float:
    """The factor of the learning rate in a round (1, 2, ...): 1 in the first, close to 0 in the last.

    What comes after the last round, such as the steps that make a personal model, goes on with its factor.
    """
    left = (rounds - min(round, rounds) + 1) / rounds
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[schedule]
