"""Which prompts a model may decode in one batch, of models that allow less than others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from capfl.model import tiny
from capfl.model.base import Base
from capfl.model.together import Together, together


def base(module: nn.Module) -> Base:
    return Base("random", "", module.eval(), tiny.tokenizer(), torch.device("cpu"))


def random(name: str) -> PreTrainedModel:
    small: dict[str, Any] = {"vocab_size": tiny.VOCAB, "initializer_range": 0.4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        match name:
            case "mamba":
                return MambaForCausalLM(MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, **small))
            case "openai-gpt":
                return OpenAIGPTLMHeadModel(OpenAIGPTConfig(n_embd=16, n_layer=2, n_head=2, **small))
            case "rwkv":
                return RwkvForCausalLM(RwkvConfig(hidden_size=16, num_hidden_layers=2, context_length=64, **small))
            case _:
                return LlamaForCausalLM(tiny.config())


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("llama", Together(of_one_length=True, of_any_length=True, leave=True)),
        ("openai-gpt", Together(of_one_length=True, of_any_length=True)),  # has no cache
        ("mamba", Together(of_one_length=True, of_any_length=True)),  # states of another kind
        ("rwkv", Together()),  # transformers mixes up rows after the first new token
    ],
)
def test_what_a_model_allows(name: str, allowed: Together) -> None:
    assert together(base(random(name))) == allowed


def test_rows_do_not_leave_where_a_model_remembers_how_many_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """As models that see do, which keep each row's positions beside the cache."""
    module = random("llama")
    forward, rows = module.forward, list[int]()

    def remembering(**given: Any) -> Any:
        ids = given["input_ids"]
        if ids.shape[1] > 1:
            rows[:] = [len(ids)]
        return forward(
            **given, position_ids=given["attention_mask"].cumsum(1)[:, -ids.shape[1] :] * torch.ones(rows[0], 1).long()
        )

    monkeypatch.setattr(module, "forward", remembering)
    assert together(base(module)) == Together(of_one_length=True, of_any_length=True)
