"""Privacy of single items: gradients row by row, clipped, summed and noised, and what steps make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from capfl import adapter as algebra
from capfl.config.schema import TrainConfig
from capfl.model import parts
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.items import Protection, clipped_sum, item_gradients, noisy_gradients
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.parts import mean_loss
from capfl.model.tokens import Row
from capfl.model.train import local_steps
from capfl.types import Adapter, Penalty

CACHE = HiddenCache(1 << 20)
Adapt = Callable[..., AdaptedModel]
Wander = Callable[..., Adapter]


def rows(answers: Sequence[int]) -> Rows:
    """Rows of lengths of their own, with so many answer tokens each."""
    generator = np.random.default_rng(3)
    made = []
    for n, own in zip(generator.integers(6, 14, len(answers)), answers, strict=True):
        tokens = generator.integers(1, 250, n + 1).astype(np.int32)
        made.append(Row(tokens[:-1], tokens[-own:]))
    return Rows(made)


def alone(model: AdaptedModel, data: Rows, row: int) -> Adapter:
    """The gradient of one row's loss, by the plain backward pass."""
    for p in model.parameters.values():
        p.grad = None
    mean_loss(model, data.batch(model, CACHE, [row])).backward()
    return {name: p.grad.clone() for name, p in model.parameters.items() if p.grad is not None}


@pytest.fixture
def model(adapt: Adapt, wander: Wander) -> AdaptedModel:
    made = adapt()
    made.write(wander(made))
    for p in made.parameters.values():
        p.requires_grad_(True)
    return made


@pytest.mark.parametrize("how", ["plain", "only B", "checkpointing", "few logits at once", "bfloat16"])
def test_each_row_has_the_gradient_that_it_has_alone(
    adapt: Adapt, wander: Wander, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    model = adapt(
        layers="all" if how == "checkpointing" else "top:2", dtype="bfloat16" if how == "bfloat16" else "float32"
    )
    model.write(wander(model))
    for name, p in model.parameters.items():
        p.requires_grad_(how != "only B" or name.endswith(".B"))
    if how == "few logits at once":
        monkeypatch.setattr(parts, "at_once", lambda vocabulary: 3)
    data = rows([1, 4, 2, 3])
    model.train(True, checkpointing=how == "checkpointing")
    try:
        each = item_gradients(model, data.batch(model, CACHE, range(4)), dict(model.parameters))
        expected = [alone(model, data, row) for row in range(4)]
    finally:
        model.train(False)
    assert each.keys() == {name for name in model.parameters if how != "only B" or name.endswith(".B")}
    for row, own in enumerate(expected):
        assert own.keys() == each.keys()
        scale = max(float(t.abs().max()) for t in own.values())
        for name, t in own.items():
            torch.testing.assert_close(
                each[name][row], t, rtol=1e-4, atol=scale * (0.05 if how == "bfloat16" else 1e-5)
            )


def test_the_clipped_sum_by_hand() -> None:
    a = torch.tensor([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0], [math.nan, 0.0], [math.inf, 1.0], [1e30, 0.0]])
    b = torch.tensor([[4.0], [0.4], [0.0], [0.0], [0.0], [0.0]])
    found = clipped_sum({"a": a, "b": b}, 2.0)  # norms 5, 0.5, 0, none, none, 1e30
    torch.testing.assert_close(found["a"], torch.tensor([1.2 + 0.3 + 2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found["b"], torch.tensor([1.6 + 0.4], dtype=torch.float64))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_with_hardly_any_noise_it_is_the_sum_of_clipped_gradients_over_the_expected_number(
    model: AdaptedModel, accumulate: int
) -> None:
    """Whatever the number of rows is: batches are drawn by chance, and what is divided by must not depend on that."""
    data, widest = rows([1, 4, 2, 3, 1]), list[int]()
    gradients = [alone(model, data, row) for row in range(5)]
    clip = sorted(algebra.norm(g) for g in gradients)[2]
    expected = {name: torch.zeros_like(p) for name, p in model.parameters.items()}
    for g in gradients:
        expected = algebra.add(expected, algebra.scaled(g, min(1.0, clip / algebra.norm(g)) / 2.5))
    batch = data.batch
    data.batch = lambda *a: widest.append(len(a[2])) or batch(*a)  # type: ignore[method-assign,assignment,func-returns-value]
    config = TrainConfig(batch_size=4, accumulate=accumulate)
    noisy_gradients(model, CACHE, data, range(5), dict(model.parameters), Protection(clip, 1e-12, 2.5), config)
    assert widest == {1: [4, 1], 3: [2, 2, 1]}[accumulate]  # no more at once than a plain step of 4 rows has
    for name, p in model.parameters.items():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_the_noise_is_normal_of_the_right_size_and_of_an_empty_batch_all_there_is(model: AdaptedModel) -> None:
    found = list[torch.Tensor]()
    for name, p in model.parameters.items():
        p.requires_grad_(name.endswith(".A"))
        p.grad = None
    for _ in range(30):
        noisy_gradients(model, CACHE, rows([1]), [], dict(model.parameters), Protection(3.0, 0.5, 4.0), TrainConfig())
        found += [p.grad.flatten() for p in model.parameters.values() if p.grad is not None]
    drawn = torch.cat(found).double() / (3.0 * 0.5 / 4.0)
    assert len(drawn) == 30 * sum(p.numel() for name, p in model.parameters.items() if name.endswith(".A"))
    assert float(drawn.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * len(drawn)))
    assert kstest(drawn.numpy(), norm.cdf).pvalue > 1e-3


@pytest.mark.parametrize("how", ["plain", "only A, with a pull"])
def test_without_noise_and_clipping_a_step_is_the_plain_one(adapt: Adapt, wander: Wander, how: str) -> None:
    """Of rows with equally many answer tokens, whose mean loss is the mean of the items' losses."""
    model, data, config = adapt(), rows([2, 2, 2, 2]), TrainConfig(learning_rate=0.01, max_grad_norm=0.5)
    job = Job(data, [[0, 1], [2, 3], [0, 3]], wander(model), rate=0.5)
    if how == "only A, with a pull":
        pull = Penalty(lambda now, to, rate: {n: t + 20 * rate * (to[n] - t) for n, t in now.items()}, wander(model, 9))
        job = replace(job, trainable=lambda name: name.endswith(".A"), penalty=pull)
    plain = local_steps(model, CACHE, job, config)
    quiet = local_steps(model, CACHE, replace(job, protection=Protection(1e6, 1e-16, 2.0)), config)
    assert (quiet.losses, len(plain.losses)) == ((0.0,) * 3, 3)  # a loss has no noise, so nobody is told of it
    torch.testing.assert_close(quiet.sensitivity, plain.sensitivity, rtol=1e-2, atol=1e-5)
    for name, t in plain.adapter.items():
        torch.testing.assert_close(quiet.adapter[name], t, rtol=1e-3, atol=1e-5)
