"""A patch of the base: what the model then computes, and that nothing of it stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig, TrainConfig
from capfl.errors import ModelError
from capfl.model import tiny
from capfl.model.base import Base
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Row
from capfl.model.train import local_steps
from capfl.types import Adapter

IDS = torch.arange(1, 13).reshape(2, 6)


def patched(adapter: Adapter, seed: int = 7, size: float = 0.3) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    patch = {name: size * torch.randn(t.shape, generator=generator) for name, t in algebra.blank(adapter).items()}
    return adapter | patch


def logits(model: AdaptedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(IDS, torch.arange(12), model.lower(IDS) if model.lowest else None).float()


def weights(model: AdaptedModel) -> bytes:
    named = {name: p for name, p in model.base.module.named_parameters() if "lora_" not in name}
    return b"".join(p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in named.values())


def test_the_module_adds_what_a_base_with_other_weights_would(adapt, wander):
    targets = ("q_proj", "down_proj")
    model, other = adapt(targets=targets), adapt(targets=targets, fresh=True)
    adapter = patched(wander(model))
    model.write(adapter)
    with torch.no_grad():
        for name, t in adapter.items():
            if name.endswith(".W"):
                other.base.module.get_submodule(name[:-2]).get_base_layer().weight += 8.0 / 2 * t  # alpha / r
    other.write(algebra.unpatched(adapter))
    torch.testing.assert_close(logits(model), logits(other))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_swapping_leaves_no_bit_behind(adapt, wander, dtype):
    model = adapt(dtype=dtype, fresh=True)
    adapter, named = wander(model), dict(model.base.module.named_parameters())
    before, pointers = weights(model), {name: p.data_ptr() for name, p in named.items()}
    model.write(adapter)
    clean = logits(model)
    for seed in range(3):
        model.write(patched(adapter, seed))
        assert not torch.equal(logits(model), clean)
    model.write(adapter)
    assert torch.equal(logits(model), clean)
    assert weights(model) == before
    assert {name: p.data_ptr() for name, p in model.base.module.named_parameters()} == pointers
    assert not any(module._forward_hooks for module in model.base.module.modules())


def test_half_precision_does_not_round_a_small_patch_away(adapt, wander):
    """To weights of 1 in bfloat16, 0.001 cannot be added."""
    model = adapt(dtype="bfloat16", fresh=True)
    module = model.base.module.get_submodule(model.targets[0])
    x = torch.tensor([1.0, -1.0]).repeat(16).reshape(1, 32)
    adapter = {name: torch.zeros_like(t) for name, t in wander(model).items()}
    with torch.no_grad():
        module.get_base_layer().weight.fill_(1.0)
        model.write(adapter | {f"{model.targets[0]}.W": 0.001 / 4 * x.repeat(32, 1)})  # alpha / r = 4
        got = module(x.bfloat16()).float()
    torch.testing.assert_close(got, torch.full((1, 32), 0.032), rtol=0.01, atol=0)


def test_transposed_weights(wander):
    """GPT-2 keeps its weights as (d_in, d_out)."""
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(vocab_size=tiny.VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    base = Base("gpt2", "", module.requires_grad_(False), tiny.tokenizer(), torch.device("cpu"))
    model = AdaptedModel(base, LoraConfig(rank=2, targets=("c_attn",), layers="all"))
    adapter = wander(model)
    products = {f"{m}.W": up @ down for m, down, up in algebra.factors(adapter)}
    model.write({name: 2 * t if name.endswith(".B") else t for name, t in adapter.items()})
    expected = logits(model)
    model.write(adapter | products)
    torch.testing.assert_close(logits(model), expected)


def test_training_works_on_the_patched_base_and_leaves_the_patch(adapt, wander):
    model = adapt()
    rows = Rows([Row(np.arange(i, i + 6), np.array([i])) for i in range(1, 9)])

    def trained(start: Adapter) -> Adapter:
        return local_steps(model, HiddenCache(0), Job(rows, [[0, 1, 2, 3], [4, 5, 6, 7]], start), TrainConfig()).adapter

    adapter = patched(wander(model))
    copies = {name: t.clone() for name, t in adapter.items()}
    after, plain = trained(adapter), trained(algebra.unpatched(adapter))
    assert list(after) == list(adapter)
    assert all(torch.equal(t, copies[name]) for name, t in adapter.items())
    assert all(torch.equal(after[name], t) for name, t in adapter.items() if name.endswith(".W"))
    assert plain.keys() == algebra.unpatched(adapter).keys()
    assert any(not torch.equal(after[name], t) for name, t in plain.items())


def test_a_patch_that_does_not_fit(adapt, wander):
    model = adapt()
    adapter, name = wander(model), f"{model.targets[0]}.W"
    for wrong in ({name: torch.zeros(3, 32)}, {"lm_head.W": torch.zeros(2, 2)}):
        with pytest.raises(ModelError, match=r"\.W': shape"):
            model.write(adapter | wrong)
