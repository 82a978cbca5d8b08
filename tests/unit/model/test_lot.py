"""Several clients in one pass: each learns what it would have learnt alone, whoever is beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from capfl import adapter as algebra
from capfl.config.schema import TrainConfig
from capfl.errors import ModelError, TrainingError
from capfl.model import parts
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.lot import steps_together
from capfl.model.per_row import check_rows, own_adapters
from capfl.model.tokens import Row
from capfl.model.train import local_steps
from capfl.types import Adapter, Penalty, Trained

RTOL, ATOL = 1e-3, 1e-5
"""By how much a factor may differ after a few steps: what docs/gpu.md says."""

Wander = Callable[..., Adapter]


def rows_of(client: int) -> Rows:
    """Five rows of their own lengths, with one to four answer tokens."""
    generator = np.random.default_rng(client)
    made = []
    for n, answers in zip(generator.integers(6, 14, 5), generator.integers(1, 5, 5), strict=True):
        tokens = generator.integers(1, 250, n + 1).astype(np.int32)
        made.append(Row(tokens[:-1], tokens[-answers:]))
    return Rows(made)


PLANS = {
    "as many rows": [[[0, 1], [2, 3]]] * 3,
    "other rows": [[[0, 1, 2], [3, 4], [1]], [[4], [0, 1, 2, 3]], [[2, 3]]],  # and other numbers of steps
}


def jobs_of(model: AdaptedModel, wander: Wander, plans: list[list[list[int]]], **more: object) -> list[Job]:
    return [Job(rows_of(k), plan, wander(model, k), **more) for k, plan in enumerate(plans)]  # type: ignore[arg-type]


def together(model: AdaptedModel, jobs: list[Job], config: TrainConfig) -> list[Trained | TrainingError]:
    return steps_together(model, HiddenCache(1 << 20), jobs, config)


def alike(a: Trained | TrainingError, b: Trained | TrainingError) -> None:
    assert isinstance(a, Trained)
    assert isinstance(b, Trained)
    assert a.losses == pytest.approx(b.losses, rel=1e-5)
    torch.testing.assert_close(a.sensitivity, b.sensitivity, rtol=1e-2, atol=1e-5)
    assert a.adapter.keys() == b.adapter.keys()
    for name, t in b.adapter.items():
        torch.testing.assert_close(a.adapter[name], t, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("plans", PLANS)
@pytest.mark.parametrize("how", ["plain", "in parts", "few logits at once", "checkpointing", "only A, with a pull"])
def test_each_client_learns_what_it_learns_alone(
    adapt: Callable[..., AdaptedModel], wander: Wander, monkeypatch: pytest.MonkeyPatch, plans: str, how: str
) -> None:
    model = adapt(layers="all" if how == "checkpointing" else "top:2")
    settings: dict[str, object] = {"in parts": {"accumulate": 2}, "checkpointing": {"checkpointing": True}}.get(how, {})
    config = TrainConfig(learning_rate=0.01, max_grad_norm=0.5, **settings)  # type: ignore[arg-type]
    if how == "few logits at once":
        monkeypatch.setattr(parts, "at_once", lambda vocabulary: 3)
    jobs = jobs_of(model, wander, PLANS[plans], rate=0.5)
    if how == "only A, with a pull":
        pull = Penalty(lambda now, to, rate: {n: t + 20 * rate * (to[n] - t) for n, t in now.items()}, wander(model, 9))
        only_a = jobs_of(model, wander, PLANS[plans], trainable=lambda name: name.endswith(".A"), penalty=pull)
        jobs = [only_a[0], *jobs[1:]]  # each has a penalty and trainable factors of its own
    before = [algebra.copy(job.start) for job in jobs]
    found = together(model, jobs, config)
    for job, got, start in zip(jobs, found, before, strict=True):
        alike(got, local_steps(model, HiddenCache(1 << 20), job, config))
        assert all(torch.equal(job.start[name], t) for name, t in start.items())
        assert any(not torch.equal(got.adapter[name], t) for name, t in start.items())  # type: ignore[union-attr]


def test_equal_arguments_give_equal_bits_and_leave_the_model_as_it_was(
    adapt: Callable[..., AdaptedModel], wander: Wander
) -> None:
    model = adapt()
    jobs, config = jobs_of(model, wander, PLANS["other rows"]), TrainConfig(learning_rate=0.01)
    first, again = together(model, jobs, config), together(model, jobs, config)
    for a, b in zip(first, again, strict=True):
        assert isinstance(a, Trained)
        assert isinstance(b, Trained)
        assert a.losses == b.losses
        assert all(torch.equal(a.adapter[name], t) for name, t in b.adapter.items())
    assert not any("forward" in vars(half) for half in model.halves.values())


@pytest.mark.parametrize("ruin", ["start", "last step"])
def test_a_client_whose_loss_is_not_finite_fails_alone(
    adapt: Callable[..., AdaptedModel], wander: Wander, ruin: str
) -> None:
    model, config = adapt(), TrainConfig(learning_rate=0.01)
    jobs = jobs_of(model, wander, PLANS["other rows"])
    if ruin == "start":
        for t in jobs[1].start.values():  # some processors' attention makes a finite number of a query that is none
            t.fill_(float("nan"))
    else:
        bad = Penalty(lambda now, to, rate: {name: t / 0 for name, t in now.items()}, {})
        jobs[1] = Job(jobs[1].data, [[4]], jobs[1].start, first_step=7, penalty=bad)
    found = together(model, jobs, config)
    message = {"start": "the loss is nan at step 0;", "last step": "the adapter is not finite after step 7;"}[ruin]
    assert isinstance(found[1], TrainingError)
    assert message in str(found[1])
    for k in (0, 2):
        alike(found[k], local_steps(model, HiddenCache(1 << 20), jobs[k], config))


def test_a_patch_of_the_base_is_refused_and_one_left_over_is_taken_off(
    adapt: Callable[..., AdaptedModel], wander: Wander
) -> None:
    model, config = adapt(), TrainConfig(learning_rate=0.01)
    jobs = jobs_of(model, wander, PLANS["as many rows"])
    alone = local_steps(model, HiddenCache(1 << 20), jobs[0], config)
    patch = {name: torch.ones_like(t) for name, t in algebra.blank(jobs[0].start).items()}
    model.write(jobs[0].start | patch)
    alike(together(model, jobs, config)[0], alone)
    patched = Job(jobs[0].data, jobs[0].plan, jobs[0].start | patch)
    with pytest.raises(
        ModelError, match=r"clients whose method patches the base cannot share a pass; set runtime\.clients_per"
    ):
        together(model, [jobs[1], patched], config)


def test_a_model_whose_modules_see_all_rows_in_one_heap_is_refused(adapt: Callable[..., AdaptedModel]) -> None:
    model = adapt(fresh=True)
    check_rows(model)
    module = model.base.module.get_submodule(model.targets[0])
    flat = module.register_forward_pre_hook(lambda module, args: (args[0].flatten(0, 1),))
    back = module.register_forward_hook(lambda module, args, output: output.unflatten(0, (2, -1)))
    with pytest.raises(ModelError, match=r"inputs of shape \(16, 32\), not 2 rows of tokens; set runtime\.clients_per"):
        check_rows(model)
    flat.remove()
    back.remove()
    mixed = module.register_forward_hook(lambda module, args, output: output - output.mean(0))
    with pytest.raises(ModelError, match="for a text depends on the other texts"):
        check_rows(model)
    mixed.remove()


def test_rows_meet_the_adapters_of_their_own_clients(adapt: Callable[..., AdaptedModel], wander: Wander) -> None:
    model = adapt()
    first, second = wander(model, 0), wander(model, 1)
    ids = torch.randint(1, 250, (3, 7), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7)
    with torch.no_grad(), own_adapters(model, [first, second], [1, 2]):
        found = model.logits(ids, torch.arange(21)).unflatten(0, (3, 7))
    for row, adapter in enumerate((first, second, second)):
        model.write(adapter)
        with torch.no_grad():
            torch.testing.assert_close(found[row], model.logits(ids[row : row + 1], positions), rtol=1e-4, atol=1e-4)
