"""Compiled layers: the same steps but for rounding, one graph for all lengths, and no compiler is said at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from capfl.config.schema import TrainConfig
from capfl.errors import ConfigError
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Row
from capfl.model.train import local_steps
from capfl.types import Adapter


@pytest.mark.slow
def test_compiled_layers_train_alike_and_no_length_is_compiled_anew(
    adapt: Callable[..., AdaptedModel], wander: Callable[..., Adapter]
) -> None:
    from torch._dynamo.utils import counters  # takes seconds to import

    model = adapt(fresh=True)
    generator = np.random.default_rng(0)
    tokens = [generator.integers(1, 250, n + 1).astype(np.int32) for n in (40, 9, 23, 8, 31, 17)]
    data = Rows([Row(ids[:-1], ids[-2:]) for ids in tokens])
    job = Job(data, [[0, 1], [2, 3, 4], [1, 3], [5, 4], [0, 1, 2, 3]], wander(model))
    config, cache = TrainConfig(learning_rate=0.01), HiddenCache(1 << 20)
    plain = local_steps(model, cache, job, config)
    model.compile()
    graphs = counters["stats"]["unique_graphs"]
    compiled = local_steps(model, cache, job, config)
    assert 1 <= graphs <= 2  # hidden states that enter have a gradient or not
    assert counters["stats"]["unique_graphs"] == graphs
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    for name, t in plain.adapter.items():
        torch.testing.assert_close(compiled.adapter[name], t, rtol=1e-3, atol=1e-5)


def test_layers_are_compiled_for_training_alone_and_checkpointing_goes_around_them(
    adapt: Callable[..., AdaptedModel], wander: Callable[..., Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, called = adapt(fresh=True), list[str]()

    def compiler(forward: Callable[..., object], dynamic: bool) -> Callable[..., object]:
        assert dynamic
        return lambda *args, **kwargs: called.append("layer") or forward(*args, **kwargs)  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch, "compile", compiler)
    model.compile()
    assert called == ["layer"] * 2  # of four, the adapted ones
    assert all(p.grad is None for p in model.parameters.values())
    ids, positions = torch.tensor([[3, 1, 4]]), torch.tensor([2])
    model.logits(ids, positions)
    assert called == ["layer"] * 2
    model.train(True, checkpointing=True)
    model.logits(ids, positions, model.lower(ids)).sum().backward()
    assert called == ["layer"] * 6  # and once more each, in the backward pass


def test_a_compiler_that_fails_is_an_error_before_anything_is_trained(
    adapt: Callable[..., AdaptedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapt(fresh=True)

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no working C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: fails)
    message = (
        r"runtime\.compile: torch\.compile fails here \(RuntimeError: no working C\+\+ compiler\); install a C\+\+"
    )
    with pytest.raises(ConfigError, match=message):
        model.compile()
    model.train(True)
    assert model.logits(torch.tensor([[3, 1, 4]]), torch.tensor([2])).isfinite().all()  # it goes on without
