"""Local training: AdamW on the factors, and nothing else that anybody could notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from capfl import adapter as algebra
from capfl.config.schema import TrainConfig
from capfl.errors import TrainingError
from capfl.model import tiny
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.tokens import Row
from capfl.model.train import local_steps, scheduled
from capfl.rng import torch_stream
from capfl.types import Adapter, Penalty

LR = 0.01


def _rows() -> list[Row]:
    """Rows with unequal numbers of answer tokens: a mean over tokens is no mean over rows."""
    generator = np.random.default_rng(0)
    made = []
    for n, answers in ((6, 2), (9, 1), (5, 4), (12, 2)):
        tokens = generator.integers(1, 250, n + 1).astype(np.int32)
        made.append(Row(tokens[:-1], tokens[-answers:]))
    return made


ROWS = _rows()
PLAN = [[0, 1, 2], [2, 3], [1, 2]]


def train(model, start: Adapter, plan=PLAN, config: TrainConfig | None = None, **more):  # type: ignore[no-untyped-def]
    config = config or TrainConfig(learning_rate=LR)
    return local_steps(model, HiddenCache(1 << 20), Job(Rows(ROWS), plan, start, **more), config)


def moved(start: Adapter, trained: Adapter) -> dict[str, float]:
    return {name: float((trained[name] - t).abs().max()) for name, t in start.items()}


def same(a: Adapter, b: Adapter) -> bool:
    return all(torch.equal(a[name], t) for name, t in b.items())


def test_equal_arguments_give_equal_bits_and_change_nobodys_tensors(adapt, wander):
    model = adapt()
    start = wander(model)
    before, state = algebra.copy(start), torch.get_rng_state()
    first = train(model, start)
    kept = algebra.copy(first.adapter)
    train(model, wander(model, 1), config=TrainConfig(learning_rate=0.1))
    again = train(model, start, first_step=100)
    assert first.losses == again.losses
    assert same(first.adapter, again.adapter)
    assert same(before, start)
    assert same(kept, first.adapter)
    assert all(change > 0 for change in moved(start, kept).values())
    assert not any(t.requires_grad for t in first.adapter.values())
    assert torch.equal(torch.get_rng_state(), state)  # without dropout no random number is drawn
    model, dropped = adapt(dropout=0.5), []
    for key in ("a", "a", "b"):
        with torch_stream(0, "dropout", key):
            dropped.append(train(model, start).adapter)
    assert same(dropped[0], dropped[1])
    assert not same(dropped[0], dropped[2])


@pytest.mark.parametrize(("accumulate", "at_once"), [(1, [3, 2, 2]), (2, [2, 1, 1, 1, 1, 1])])
def test_against_a_plain_loop_over_the_plain_model(adapt, wander, monkeypatch, accumulate, at_once):
    """Everything again by the book: merged weights, whole sequences one by one, torch's AdamW and clipping.

    However many parts a step is computed in, its gradient and its loss are those of the whole batch. A penalty is in
    neither: it follows the step.
    """
    model = adapt()
    start = wander(model)
    config = TrainConfig(learning_rate=LR, max_grad_norm=0.5, accumulate=accumulate)
    goal = algebra.scaled(start, 0.5)
    pull = Penalty(lambda now, to, rate: {name: t + 20 * rate * (to[name] - t) for name, t in now.items()}, goal)
    seen, real = [], model.logits
    monkeypatch.setattr(model, "logits", lambda ids, *rest: seen.append(len(ids)) or real(ids, *rest))
    got = train(model, start, config=config, rate=0.5, penalty=pull)
    assert seen == at_once  # rows

    plain = tiny.model()
    plain.requires_grad_(False)
    live = {name: torch.nn.Parameter(t.clone()) for name, t in start.items()}
    weights = {module: plain.get_submodule(module).weight.clone() for module in algebra.ranks(start)}
    optimiser = torch.optim.AdamW(live.values(), lr=0.5 * LR, weight_decay=0.0)
    losses = []
    for indices in PLAN:
        merged = {
            f"{module}.weight": weights[module] + 4.0 * live[f"{module}.B"] @ live[f"{module}.A"] for module in weights
        }
        logits, targets = [], []
        for i in indices:
            ids = torch.from_numpy(ROWS[i].ids.astype(np.int64))[None]
            logits.append(torch.func.functional_call(plain, merged, (ids,)).logits[0, -len(ROWS[i].targets) :])
            targets += ROWS[i].targets.tolist()
        loss = F.cross_entropy(torch.cat(logits), torch.tensor(targets))
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live.values(), 0.5)
        optimiser.step()
        with torch.no_grad():
            for name, t in live.items():
                t += 0.1 * (goal[name] - t)  # 20 times a learning rate of 0.005

    assert got.losses == pytest.approx(losses, rel=1e-5)
    for name, t in live.items():
        torch.testing.assert_close(got.adapter[name], t.detach(), rtol=1e-3, atol=1e-5)


def test_checkpointing_gives_the_same_bits_and_keeps_less(adapt, wander):
    model = adapt(layers="all", dropout=0.5)
    start, found, kept = wander(model), [], []
    for checkpointing in (False, True):
        tensors: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, to=tensors: to.append(t.numel()) or t, lambda t: t)
        with torch_stream(0, "dropout"), hooks:
            found.append(train(model, start, config=TrainConfig(checkpointing=checkpointing)))
        kept.append(sum(tensors))
    assert found[0].losses == found[1].losses
    assert same(found[0].adapter, found[1].adapter)
    assert kept[1] < 0.5 * kept[0]
    assert not any("forward" in vars(layer) for layer in model.layers)  # the real layers are back


def test_a_loss_that_is_not_finite_stops_with_its_step_and_dropout_is_off_again(adapt, wander):
    model = adapt(dropout=0.5, fresh=True)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 8; lower train.learning_rate"):
        train(model, wander(model), config=TrainConfig(learning_rate=1e30), first_step=7)
    assert not any(m.training for m in model.base.module.modules() if isinstance(m, torch.nn.Dropout))
    with torch.no_grad():
        model.base.module.lm_head.weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="at step 0;"):
        train(model, wander(model))


def test_an_adapter_that_only_the_last_step_ruined_is_noticed(adapt, monkeypatch):
    """Its losses are all finite, and a method that sends nothing would keep it.

    Which learning rate does so in two steps depends on how a processor adds up squares, so a step does it by itself.
    """
    model, taken, step = adapt(), [], torch.optim.AdamW.step

    def ruinous(optimiser, *args, **kwargs):
        done = step(optimiser, *args, **kwargs)
        taken.append(1)
        if len(taken) == 2:
            with torch.no_grad():
                optimiser.param_groups[0]["params"][0].view(-1)[0] = float("inf")
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", ruinous)
    with pytest.raises(TrainingError, match=r"the adapter is not finite after step 1; lower train.learning_rate"):
        train(model, model.initial_adapter(0), PLAN[:2], TrainConfig())


def test_a_factor_that_is_not_trainable_keeps_its_bits(adapt, wander):
    model = adapt()
    start = wander(model)
    for factor in (".A", ".B"):  # the next method may train it again
        trained = train(model, start, trainable=lambda name, factor=factor: name.endswith(factor)).adapter
        assert all((change > 0) == name.endswith(factor) for name, change in moved(start, trained).items())
    start = model.initial_adapter(0)  # B = 0, so A has no gradient: nor does it decay
    assert not any(moved(start, train(model, start, trainable=lambda name: name.endswith(".A")).adapter).values())


def test_sensitivity_is_the_derivative_by_a_factor_on_each_rank(adapt, wander):
    """Against a finite difference: the loss of one batch with a rank's column made a little larger and smaller."""
    model = adapt()
    start = wander(model)
    found = train(model, start, PLAN[:1]).sensitivity
    assert found.shape == (sum(algebra.ranks(start).values()),)

    def loss(rank: int, factor: float) -> float:
        scaled, at = dict(start), 0
        for module, _, up in algebra.factors(start):
            if at <= rank < at + up.shape[1]:
                changed = up.clone()
                changed[:, rank - at] *= factor
                scaled[f"{module}.B"] = changed
            at += up.shape[1]
        return train(model, scaled, PLAN[:1]).losses[0]

    for rank in (0, 1, len(found) - 1):
        slope = (loss(rank, 1.01) - loss(rank, 0.99)) / 0.02
        assert abs(slope) == pytest.approx(float(found[rank]), rel=0.05, abs=1e-4)


def test_sensitivity_is_the_same_by_either_factor_and_zero_where_no_gradient_is(adapt, wander):
    """What the other factor's gradient was in an earlier call does not count."""
    model = adapt()

    def by(start: Adapter, which: str) -> torch.Tensor:
        return train(model, start, PLAN[:1], trainable=lambda name: name.endswith(which)).sensitivity

    start = wander(model)
    first, other, again = by(start, ".A"), by(start, ".B"), by(start, ".A")
    torch.testing.assert_close(first, other)
    assert torch.equal(first, again)
    assert first.all()
    unmoved = model.initial_adapter(0)  # B = 0: of what A reads, nothing comes through
    assert not by(unmoved, ".A").any()
    assert train(model, unmoved, PLAN).sensitivity.all()


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1]), ("linear", [1, 0.75, 0.25]), ("cosine", [1, 0.8535534, 0.1464466])],
)
def test_the_schedule_goes_from_round_to_round(schedule, factors):
    assert [scheduled(schedule, round, 4) for round in (1, 2, 4)] == pytest.approx(factors)
    assert scheduled(schedule, 9, 4) == scheduled(schedule, 4, 4)
