"""Several clients' local steps in one pass of the base: every row of a batch meets the adapter of its own client.

The frozen weights are read once for all of them, which is most of what a small batch waits for on an accelerator. Rows
never see each other, so what a client learns does not depend on who else is in the pass, but for rounding: matrix
products add up in another order, and rows are padded to the longest of all. One client at a time
(``model.train.local_steps``) is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from capfl import adapter as algebra
from capfl.config.schema import TrainConfig
from capfl.errors import ModelError, TrainingError
from capfl.model.hidden import HiddenCache, joined
from capfl.model.learner import Job, Learner
from capfl.model.lora import AdaptedModel
from capfl.model.parts import token_losses
from capfl.model.per_row import REMEDY, own_adapters
from capfl.model.train import split
from capfl.types import Trained


def steps_together(
    model: AdaptedModel, cache: HiddenCache, jobs: Sequence[Job], config: TrainConfig
) -> list[Trained | TrainingError]:
    """What ``local_steps`` gives for every job, or raises. The adapters that starts are made of have no patch.

    A job with fewer steps than others, or with an error, is left out of the passes that follow.

    Raises:
        ModelError: a start does not fit the model, or has a patch.
    """
    learners = [_learner(model, job, config) for job in jobs]
    done: dict[int, TrainingError] = {}
    model.write(jobs[0].start)  # takes off what another adapter has patched; the factors are not used
    model.train(True, config.checkpointing)
    try:
        for number in range(max(len(job.plan) for job in jobs)):
            working = [i for i, job in enumerate(jobs) if i not in done and number < len(job.plan)]
            losses = _gradients(model, cache, [(jobs[i], learners[i]) for i in working], number, config.accumulate)
            for i, own in zip(working, losses, strict=True):
                try:
                    learners[i].step(own)
                except TrainingError as error:
                    done[i] = error
    finally:
        model.train(False)
    return [done[i] if i in done else _trained(own) for i, own in enumerate(learners)]


def _gradients(
    model: AdaptedModel, cache: HiddenCache, working: Sequence[tuple[Job, Learner]], number: int, accumulate: int
) -> list[list[float]]:
    """Leave the gradients of a step in the learners' factors. Returns the losses of each one's parts of it."""
    parts = zip_longest(*(split(job.plan[number], accumulate) for job, _ in working))
    tokens = [sum(len(job.data.rows[i].targets) for i in job.plan[number]) for job, _ in working]
    for _, learner in working:
        learner.clear()
    who: list[int] = []
    found: list[Tensor] = []
    for part in parts:
        here = [k for k, indices in enumerate(part) if indices]
        batches = [working[k][0].data.batch(model, cache, part[k]) for k in here]
        adapters = [working[k][1].factors for k in here]
        with own_adapters(model, adapters, [len(batch.ids) for batch in batches]):
            each = token_losses(model, joined(batches)).split([len(batch.targets) for batch in batches])
            losses = torch.stack([some.sum() / tokens[k] for k, some in zip(here, each, strict=True)])
            losses.sum().backward()  # a client's factors are in its own loss alone
        who += here
        found.append(losses.detach())
    own: list[list[float]] = [[] for _ in working]
    values = torch.cat(found).tolist()  # the one time in a step that the device is waited for
    for k, loss in zip(who, values, strict=True):
        own[k].append(loss)
    return own


def _learner(model: AdaptedModel, job: Job, config: TrainConfig) -> Learner:
    model.check(job.start)
    if algebra.unpatched(job.start).keys() != job.start.keys():
        raise ModelError(f"clients whose method patches the base cannot share a pass; {REMEDY}")
    device = model.base.device
    factors = {name: nn.Parameter(job.start[name].to(device, copy=True)) for name in model.parameters}
    return Learner(factors, job, config)


def _trained(learner: Learner) -> Trained | TrainingError:
    try:
        return learner.trained()
    except TrainingError as error:
        return error
