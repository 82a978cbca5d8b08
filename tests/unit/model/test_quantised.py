"""Bases of 8 and 4 bits on the CPU: against the weights that they stand for, and trained."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from capfl.config.schema import LoraConfig, ModelConfig, TrainConfig
from capfl.errors import ConfigError, ModelError
from capfl.model import tiny
from capfl.model.base import Base, load_base
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.probe import apart
from capfl.model.quantised import loading
from capfl.model.tokens import Row
from capfl.model.train import local_steps
from capfl.types import Adapter

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bases of 4 and 8 bits need bitsandbytes")

ALLOWED = {"8bit": 0.15, "4bit": 1e-5}  # 8-bit products round their inputs too; 4-bit ones are exact in float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a random model whose layers have multiples of 64 inputs, which every kernel can give back."""
    made = tmp_path_factory.mktemp("wide")
    config = tiny.config()
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(made)
    tiny.tokenizer().save_pretrained(made)
    return made


def loaded(folder: Path, bits: str) -> AdaptedModel:
    base = load_base(ModelConfig(path=str(folder), device="cpu", quantization=bits))  # type: ignore[arg-type]
    return AdaptedModel(base, LoraConfig(rank=2, layers="top:2"))


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def pair(request: pytest.FixtureRequest, folder: Path) -> tuple[str, AdaptedModel, AdaptedModel]:
    """A quantised model, and one in float32 with the weights that it stands for."""
    model, plain = loaded(folder, request.param), LlamaForCausalLM.from_pretrained(folder)
    found = 0
    for name, module in model.base.module.named_modules():
        weight = _weight(module)
        if weight is not None:
            own = plain.get_submodule(name.removesuffix(".base_layer")).weight
            assert 0 < apart(own.detach(), weight) < 0.15  # it is rounded, and no more than rounded
            own.data = weight
            found += 1
    assert found == 4 * 7  # of every layer all linear ones
    plain.requires_grad_(False).eval()
    base = Base("plain", "", plain, model.base.tokenizer, torch.device("cpu"))
    return request.param, model, AdaptedModel(base, LoraConfig(rank=2, layers="top:2"))


def _weight(module: nn.Module) -> torch.Tensor | None:
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        found: torch.Tensor = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        return found
    if isinstance(module, bitsandbytes.nn.Linear8bitLt):
        state = module.state if module.state.CB is not None else module.weight
        return copy.copy(state.CB).float() * state.SCB[:, None] / 127  # type: ignore[no-any-return]
    return None


def test_logits_and_gradients_are_those_of_the_weights_it_stands_for(
    pair: tuple[str, AdaptedModel, AdaptedModel], wander: Callable[[AdaptedModel], Adapter]
) -> None:
    bits, *models = pair
    ids = torch.randint(1, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    found = []
    with torch.no_grad():
        models[0].base.module(input_ids=ids)  # a pass without gradients, which must not change the next one
    for model in models:
        model.write({name: 0.3 * t for name, t in wander(model).items()})
        logits = model.logits(ids, torch.arange(18), model.lower(ids))
        logits.logsumexp(-1).sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters.values() if p.grad is not None]
        assert len(gradients) == len(model.parameters)
        found.append((logits.detach(), torch.cat(gradients)))
    assert models[0].lowest == 2
    for exact, quantised in zip(found[1], found[0], strict=True):
        assert apart(exact, quantised) < ALLOWED[bits]


def test_an_adapter_on_it_learns(pair: tuple[str, AdaptedModel, AdaptedModel]) -> None:
    _, model, _ = pair
    ids = torch.arange(40, 60, dtype=torch.int32).numpy()
    data = Rows([Row(ids[:n], ids[1 : n + 1]) for n in (8, 12)])
    job = Job(data, [[0, 1]] * 8, model.initial_adapter(0))
    losses = local_steps(model, HiddenCache(1 << 20), job, TrainConfig(learning_rate=0.01)).losses
    assert losses[-1] < 0.8 * losses[0]


def test_weights_that_are_not_given_back_as_they_are_stored_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by bitsandbytes on CPUs with AVX-512, where inputs are no multiple of 64."""
    right = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *given: right(*given).roll(1, 0))
    with pytest.raises(ModelError, match=r"gives back other .* for model\.layers\.0\.\S+, which has 64 inputs; use 8"):
        loaded(folder, "4bit")


def test_4_bit_weights_are_not_repacked_for_a_product_without_gradients(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As bitsandbytes does on CPUs with bfloat16 instructions."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", lambda *given: pytest.fail("packed"))
    loaded(folder, "4bit")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_what_is_missing_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch, bits: str) -> None:
    config = ModelConfig(quantization=bits)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"{bits} is for CUDA and CPUs, and this run is on mps; set model\.device"):
        loading(config, torch.device("mps"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{bits} needs the package bitsandbytes; pip install 'capfl\[quantized\]'"):
        loading(config, torch.device("cpu"))
