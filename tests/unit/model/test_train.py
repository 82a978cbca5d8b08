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
from capfl.model.tokens import Row
from capfl.model.train import local_steps
from capfl.rng import torch_stream
from capfl.types import Adapter, Penalty

LR = 0.01


def _rows() -> list[Row]:
    generator = np.random.default_rng(0)
    made = []
    for n in (6, 9, 5, 12):
        tokens = generator.integers(1, 250, n + 1).astype(np.int32)
        made.append(Row(tokens[:-1], tokens[-2:]))
    return made


ROWS = _rows()
PLAN = [[0, 1], [2, 3], [1, 2]]


def train(model, start: Adapter, plan=PLAN, config: TrainConfig | None = None, **more):  # type: ignore[no-untyped-def]
    config = config or TrainConfig(learning_rate=LR)
    return local_steps(model, HiddenCache("memory", 1 << 20), Rows("c", ROWS), plan, start, config, **more)


def moved(start: Adapter, trained: Adapter) -> dict[str, float]:
    return {name: float((trained[name] - t).abs().max()) for name, t in start.items()}


def test_the_start_is_not_changed_and_the_result_is_a_copy(adapt, wander):
    model = adapt()
    start = wander(model)
    before = algebra.copy(start)
    trained = train(model, start).adapter
    assert all(torch.equal(start[name], t) for name, t in before.items())
    assert all(change > 0 for change in moved(start, trained).values())
    kept = algebra.copy(trained)
    train(model, trained)
    assert all(torch.equal(trained[name], t) for name, t in kept.items())
    assert not any(t.requires_grad for t in trained.values())


def test_equal_arguments_give_equal_bits_whatever_was_trained_before(adapt, wander):
    model = adapt()
    start = wander(model)
    first = train(model, start)
    train(model, wander(model, 1), config=TrainConfig(learning_rate=0.1))
    again = train(model, start)
    assert first.losses == again.losses
    assert all(torch.equal(first.adapter[name], t) for name, t in again.adapter.items())


def test_against_a_plain_loop_over_the_plain_model(adapt, wander):
    """Everything again by the book: merged weights, whole sequences one by one, torch's AdamW and clipping."""
    model = adapt()
    start = wander(model)
    config = TrainConfig(learning_rate=LR, weight_decay=0.1, max_grad_norm=0.5, warmup_steps=5)
    got = train(model, start, config=config, first_step=1)

    plain = tiny.model()
    plain.requires_grad_(False)
    live = {name: torch.nn.Parameter(t.clone()) for name, t in start.items()}
    weights = {module: plain.get_submodule(module).weight.clone() for module in algebra.ranks(start)}
    optimiser = torch.optim.AdamW(live.values(), weight_decay=0.1)
    losses = []
    for n, indices in enumerate(PLAN):
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
        optimiser.param_groups[0]["lr"] = LR * (n + 2) / 5
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live.values(), 0.5)
        optimiser.step()

    assert got.losses == pytest.approx(losses, rel=1e-5)
    for name, t in live.items():
        torch.testing.assert_close(got.adapter[name], t.detach(), rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_with_its_step(adapt, wander):
    model = adapt()
    with pytest.raises(TrainingError, match=r"the loss is nan at step 8; lower train.learning_rate"):
        train(model, wander(model), config=TrainConfig(learning_rate=1e30), first_step=7)
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


def test_after_an_error_dropout_is_off_again(adapt, wander):
    model = adapt(dropout=0.5)
    with pytest.raises(TrainingError):
        train(model, wander(model), config=TrainConfig(learning_rate=1e30))
    assert not any(m.training for m in model.base.module.modules() if isinstance(m, torch.nn.Dropout))


@pytest.mark.parametrize(("first", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0)])
def test_the_warm_up_goes_on_from_the_first_step(adapt, wander, first, factor):
    model = adapt()
    start = wander(model)
    warm = train(model, start, PLAN[:1], TrainConfig(learning_rate=LR, warmup_steps=10), first_step=first)
    constant = train(model, start, PLAN[:1], TrainConfig(learning_rate=LR * factor))
    assert all(torch.equal(warm.adapter[name], t) for name, t in constant.adapter.items())


def test_without_warm_up_the_first_step_does_not_matter(adapt, wander):
    model = adapt()
    start = wander(model)
    early, late = train(model, start), train(model, start, first_step=100)
    assert all(torch.equal(early.adapter[name], t) for name, t in late.adapter.items())


@pytest.mark.parametrize("factor", [".A", ".B"])
def test_a_factor_that_is_not_trainable_keeps_its_bits(adapt, wander, factor):
    model = adapt()
    start = wander(model)
    config = TrainConfig(learning_rate=LR, weight_decay=0.5)
    trained = train(model, start, config=config, trainable=lambda name: name.endswith(factor)).adapter
    for name, change in moved(start, trained).items():
        assert (change > 0) == name.endswith(factor)
    everything = train(model, start).adapter  # and the next method may train it again
    assert all(change > 0 for change in moved(start, everything).values())


def test_clipping_bounds_the_gradient(adapt, wander):
    model = adapt()
    start = wander(model)
    free = train(model, start, PLAN[:1], TrainConfig(learning_rate=LR, max_grad_norm=1e6)).adapter
    # AdamW's first step is lr * g / (|g| + 1e-8): about lr for any gradient, unless it is tiny
    assert max(moved(start, free).values()) == pytest.approx(LR, rel=1e-2)
    clipped = train(model, start, PLAN[:1], TrainConfig(learning_rate=LR, max_grad_norm=1e-9)).adapter
    assert max(moved(start, clipped).values()) < 0.1 * LR


def test_weight_decay_alone_shrinks_by_lr_times_decay(adapt):
    """With A = 0 and B = 0 no gradient reaches either; with B = 0 alone, none reaches A."""
    model = adapt()
    start = model.initial_adapter(0)
    config = TrainConfig(learning_rate=LR, weight_decay=0.5)
    trained = train(model, start, PLAN[:1], config).adapter
    for name, t in start.items():
        if name.endswith(".A"):
            torch.testing.assert_close(trained[name], t * (1 - LR * 0.5))


def test_a_penalty_is_added_to_the_gradient_but_not_to_the_reported_loss(adapt, wander):
    model = adapt()
    start = wander(model)
    seen = []

    def term(now: Adapter, constants: Adapter) -> torch.Tensor:
        seen.append(all(torch.equal(constants[name], start[name]) for name in now))
        return 1e3 * algebra.squared_distance(now, constants)

    config = TrainConfig(learning_rate=LR, max_grad_norm=1e6)
    free, held = train(model, start, config=config), train(model, start, config=config, penalty=Penalty(term, start))
    assert free.losses[0] == held.losses[0]
    assert seen == [True] * 3  # always the distance from the start
    distance = [float(algebra.squared_distance(t.adapter, start)) for t in (free, held)]
    assert distance[1] < 0.6 * distance[0]


def test_dropout_is_a_function_of_its_stream(adapt, wander):
    model = adapt(dropout=0.5)
    start = wander(model)

    def under(*keys: object) -> Adapter:
        with torch_stream(0, "dropout", *keys):  # type: ignore[arg-type]
            return train(model, start).adapter

    first, again, other = under("a", 0), under("a", 0), under("b", 0)
    assert all(torch.equal(first[name], t) for name, t in again.items())
    assert not all(torch.equal(first[name], t) for name, t in other.items())


def test_no_dropout_reads_no_random_numbers(adapt, wander):
    model = adapt()
    state = torch.get_rng_state()
    train(model, wander(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_lowers_the_loss(adapt):
    model = adapt()
    losses = train(model, model.initial_adapter(0), [[0, 1, 2, 3]] * 12, TrainConfig(learning_rate=0.05)).losses
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 1


def test_sensitivity_is_the_derivative_by_a_gate_on_each_rank(adapt):
    """Against a finite difference: the loss of one batch with a rank's column made a little larger and smaller."""
    model = adapt()
    start = model.initial_adapter(0)
    generator = torch.Generator().manual_seed(5)
    start = {n: 0.3 * torch.randn(t.shape, generator=generator) if n.endswith(".B") else t for n, t in start.items()}
    found = train(model, start, [PLAN[0]]).sensitivity
    assert found.shape == (sum(algebra.ranks(start).values()),)

    def loss(rank: int, factor: float) -> float:
        scaled, at = dict(start), 0
        for module, _, up in algebra.factors(start):
            if at <= rank < at + up.shape[1]:
                changed = up.clone()
                changed[:, rank - at] *= factor
                scaled[f"{module}.B"] = changed
            at += up.shape[1]
        return train(model, scaled, [PLAN[0]]).losses[0]

    for rank in (0, 1, len(found) - 1):
        slope = (loss(rank, 1.01) - loss(rank, 0.99)) / 0.02
        assert abs(slope) == pytest.approx(float(found[rank]), rel=0.05, abs=1e-4)


def test_sensitivity_is_the_same_by_either_factor(adapt, wander):
    """Whichever is trained; what the other's gradient was in an earlier call does not count."""
    model = adapt()
    start = wander(model)
    by = [
        train(model, start, [PLAN[0]], trainable=lambda name, which=which: name.endswith(which)).sensitivity
        for which in (".A", ".B", ".A")
    ]
    torch.testing.assert_close(by[0], by[1])
    assert torch.equal(by[0], by[2])
    assert by[0].all()


def test_a_gate_is_in_the_loss_and_leaves_with_the_training(adapt, wander):
    model = adapt()
    start = wander(model)
    gate = torch.linspace(0.2, 1.8, sum(algebra.ranks(start).values()))
    gated = Penalty(lambda now, constants: torch.zeros(()), {}, gate)
    folded = algebra.gated(start, gate)
    assert not torch.equal(
        next(up for *_, up in algebra.factors(folded)), next(up for *_, up in algebra.factors(start))
    )
    found, plain = (train(model, *a, **k) for a, k in (((start,), {"penalty": gated}), ((folded,), {})))
    assert found.losses[0] == pytest.approx(plain.losses[0], abs=1e-6)
    assert found.losses[-1] != plain.losses[-1]  # a rank with a small gate learns slower
    # what training leaves has no gate in it: with it, and with it in B, the model says the same
    ids = torch.arange(1, 13).reshape(2, 6)
    said = []
    for adapter, on in ((found.adapter, gate), (algebra.gated(found.adapter, gate), None), (found.adapter, None)):
        model.write(adapter)
        model.gate(on)
        said.append(model.logits(ids, torch.arange(12)).detach())
        model.gate(None)
    torch.testing.assert_close(said[0], said[1])
    assert (said[0] - said[2]).abs().max() > 1e-3
    with pytest.raises(TrainingError):
        train(model, {name: t * float("nan") for name, t in start.items()}, penalty=gated)
    model.write(found.adapter)
    assert torch.equal(model.logits(ids, torch.arange(12)), said[2])


def test_sensitivity_is_zero_where_nothing_is_trained_or_there_is_nothing(adapt):
    model = adapt()
    start = model.initial_adapter(0)  # B = 0: at the first step no gate matters
    assert not train(model, start, [PLAN[0]]).sensitivity.any()
    assert train(model, start, PLAN).sensitivity.all()
    frozen = train(model, start, PLAN, trainable=lambda name: name.endswith(".A")).sensitivity
    assert not frozen.any()
