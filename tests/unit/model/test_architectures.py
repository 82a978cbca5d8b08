"""The forward pass in two parts, on architectures that differ in what they do around their layers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from capfl.config.schema import LoraConfig
from capfl.model import tiny
from capfl.model.base import Base
from capfl.model.lora import AdaptedModel

SMALL = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip

# mistral: sliding window; qwen2: biases; gemma2: scaled embeddings, capped logits, layers of two kinds;
# gpt_neo: learnt positions added to the embeddings, layers that return tuples; gpt2: transposed weights
KINDS = {
    "mistral": SMALL | {"sliding_window": 4},
    "qwen2": SMALL,
    "gemma2": SMALL | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gpt_neo": {
        "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "window_size": 4,
        "max_position_embeddings": 128, "attention_types": [[["global", "local"], 2]], "initializer_range": 0.2,
    },
    "gpt2": {"vocab_size": tiny.VOCAB, "n_layer": 4, "n_embd": 32, "n_head": 4, "initializer_range": 0.2,
             "bos_token_id": 0, "eos_token_id": 0},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_two_parts_give_what_the_whole_gives(kind: str) -> None:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind]))
    module.requires_grad_(False).eval()
    base = Base(kind, "", module, tiny.tokenizer(), torch.device("cpu"))
    ids = torch.randint(1, 250, (3, 12))
    whole = module(input_ids=ids, use_cache=False).logits
    model = AdaptedModel(
        base, LoraConfig(layers="2,3", targets=("c_attn",) if kind == "gpt2" else ("q_proj", "v_proj"))
    )
    positions = torch.tensor([0, 7, 11, 23, 35])
    model.write(model.initial_adapter(0))
    split = model.logits(ids, positions, model.lower(ids))
    torch.testing.assert_close(split, whole.flatten(0, 1)[positions], rtol=1e-4, atol=1e-4)
    assert [type(layer).__name__ for layer in model.layers].count("_Skipped") == 0
