"""Answers: the tokens of transformers' own greedy decoding, whatever batch a prompt is in; draws by seed and row."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
)
from transformers.generation.utils import DeferredStopCheck

from capfl.config.schema import LoraConfig
from capfl.errors import ConfigError, DataError
from capfl.model import generate as generating
from capfl.model import tiny
from capfl.model.base import Base
from capfl.model.generate import _draw, generate, stop_tokens
from capfl.model.lora import AdaptedModel
from capfl.model.text import Ids
from capfl.model.together import Together, together
from capfl.types import Adapter

LENGTHS = (3, 30, 9, 17, 1)
STOPS = [*range(100, 130), 257]
NEW = 12


def modules() -> dict[str, nn.Module]:
    """Random models; what Gemma sees at once is less than what it is asked, and GPT-2 has positions of its own."""
    common: dict[str, Any] = {
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
        "initializer_range": 0.4,
        "tie_word_embeddings": False,
    }
    gemma = Gemma3TextConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, max_position_embeddings=64,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], **common,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=tiny.VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, **common)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return {
            "llama": LlamaForCausalLM(tiny.config()),
            "gemma3": Gemma3ForCausalLM(gemma),
            "gpt2": GPT2LMHeadModel(gpt2),
        }


def adapted(name: str) -> tuple[AdaptedModel, Adapter]:
    module = modules()[name].requires_grad_(False).eval()
    model = AdaptedModel(
        Base("random", "", module, tiny.tokenizer(), torch.device("cpu")), LoraConfig(rank=2, layers="top:2")
    )
    generator = torch.Generator().manual_seed(1)
    return model, {key: 0.5 * torch.randn(p.shape, generator=generator) for key, p in model.parameters.items()}


@pytest.fixture(scope="module")
def llama() -> tuple[AdaptedModel, Adapter]:
    return adapted("llama")


@pytest.fixture(scope="module")
def prompts() -> list[Ids]:
    generator = np.random.default_rng(2)
    return [generator.integers(0, 256, n).astype(np.int32) for n in LENGTHS]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_greedy_answers_are_those_of_transformers_one_by_one(name: str, prompts: list[Ids]) -> None:
    model, adapter = adapted(name)
    module = cast(Any, model.base.module)
    module.generation_config = before = GenerationConfig(eos_token_id=STOPS, repetition_penalty=5.0, do_sample=True)
    found = generate(model, adapter, prompts, max_new_tokens=NEW, batch_size=3)
    assert module.generation_config is before
    for prompt, tokens in zip(prompts, found, strict=True):
        module.generation_config = GenerationConfig()
        (whole,) = module.generate(
            torch.from_numpy(prompt[None]).long(), max_new_tokens=NEW, eos_token_id=STOPS, pad_token_id=258
        ).tolist()
        own = whole[len(prompt) :]
        assert tokens == [token for token in own if token not in STOPS]
        assert len(own) == NEW or own[-1] in STOPS
    ends = {len(tokens) for tokens in found}
    assert len(ends) > 1, "no row ended before another, so nothing was tested of rows that end"
    base = generate(model, model.initial_adapter(0), prompts, max_new_tokens=NEW)
    assert base != found, "the adapter made no difference"


def test_the_head_is_not_copied_for_each_row(llama: tuple[AdaptedModel, Adapter], prompts: list[Ids]) -> None:
    """As torch copies it for the last position of each row of a prompt, cut out of the states of all its positions."""
    head, contiguous = cast(Any, llama[0].base.module).get_output_embeddings(), list[bool]()
    handle = head.register_forward_hook(lambda _, given, logits: contiguous.append(given[0].is_contiguous()))
    generate(*llama, prompts, max_new_tokens=2)
    handle.remove()
    assert contiguous
    assert all(contiguous)
    assert not head._forward_pre_hooks


def test_where_padding_is_read_prompts_of_unlike_length_are_not_in_one_batch(
    prompts: list[Ids], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by RWKV, and some recurrent layers: here, a model that drops the mask."""
    model, adapter = adapted("gpt2")
    module = cast(Any, model.base.module)
    assert together(model.base) == Together(True, True, True)
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda attention_mask=None, **given: forward(**given))
    assert together(model.base) == Together(True, False, True)
    rows = [*prompts, prompts[0][::-1].copy()]
    sizes: list[list[int]] = []
    decode = generating._decode
    monkeypatch.setattr(
        generating,
        "_decode",
        lambda base, batch, *rest: sizes.append([len(row) for row in batch]) or decode(base, batch, *rest),
    )
    found = generate(model, adapter, rows, max_new_tokens=4)
    assert sizes == [[30], [17], [9], [3, 3], [1]]
    assert found == [generate(model, adapter, [row], max_new_tokens=4)[0] for row in rows]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_rows_that_have_ended_leave_their_batch(
    name: str, temperature: float, prompts: list[Ids], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter = adapted(name)
    setting: dict[str, Any] = {"max_new_tokens": NEW, "temperature": temperature}
    whole = generate(model, adapter, prompts, **setting)
    monkeypatch.setattr(generating, "stop_tokens", lambda base: tuple(STOPS))
    sizes: list[int] = []
    handle = model.base.module.register_forward_pre_hook(
        lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    found = generate(model, adapter, prompts, **setting)
    handle.remove()
    assert found == [generating.until(tokens, STOPS) for tokens in whole]
    lengths = sorted(map(len, found))
    assert lengths[0] < lengths[-1]
    assert sizes[-1] < len(prompts) in sizes, "all rows went on to the end"


def test_draws_are_those_of_the_seed_and_the_row(llama: tuple[AdaptedModel, Adapter], prompts: list[Ids]) -> None:
    def drawn(rows: list[Ids], **settings: Any) -> list[list[int]]:
        return generate(*llama, rows, max_new_tokens=6, **{"temperature": 2.0, "seed": 1} | settings)

    found = drawn(prompts)
    assert drawn(prompts, batch_size=2) == found
    assert drawn(prompts[:1]) == found[:1]
    assert drawn(prompts, seed=2) != found
    twins = drawn([prompts[0]] * 3)
    assert len({tuple(tokens) for tokens in twins}) == 3, "rows drew the same numbers"
    greedy = generate(*llama, prompts, max_new_tokens=6)
    assert found != greedy
    assert drawn(prompts, temperature=1e-4) == greedy
    assert drawn(prompts, top_p=1e-6) == greedy


def test_a_step_that_is_undone_changes_no_draw(
    llama: tuple[AdaptedModel, Adapter], prompts: list[Ids], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On MPS transformers looks only after the next step whether a batch is to stop, and takes that step back."""
    setting: dict[str, Any] = {"max_new_tokens": NEW, "temperature": 2.0}
    monkeypatch.setattr(generating, "stop_tokens", lambda base: tuple(STOPS))
    found = generate(*llama, prompts, **setting)
    monkeypatch.setattr(DeferredStopCheck, "is_supported", staticmethod(lambda *args, **given: True))
    monkeypatch.setattr(torch, "Event", lambda *args, **given: Mock())
    assert generate(*llama, prompts, **setting) == found


def test_tokens_are_drawn_by_their_probability() -> None:
    shares = torch.tensor([0.05, 0.5, 0.15, 0.3], dtype=torch.float64)
    uniform = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    logits = shares.log().expand(1000, 4)

    def counted(top_p: float) -> Counter[int]:
        return Counter(_draw(logits, top_p, uniform)[:, 0].tolist())

    assert counted(1.0) == {1: 500, 3: 300, 2: 150, 0: 50}
    assert counted(0.8001) == {1: 526, 3: 316, 2: 158}  # 0.5 and 0.3 are less than that together
    assert counted(0.7) == {1: 625, 3: 375}
    assert counted(0.4) == {1: 1000}
    last = torch.tensor([[1 - 2**-53]], dtype=torch.float64)
    assert int(_draw(torch.tensor([[0.0, -torch.inf]], dtype=torch.float64), 1.0, last)) == 0


def test_what_ends_an_answer_is_told_by_config_tokenizer_and_template(llama: tuple[AdaptedModel, Adapter]) -> None:
    base, tokenizer = llama[0].base, tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    other = Base("other", "", base.module, tokenizer, base.device)
    module = cast(Any, base.module)
    before, module.generation_config = module.generation_config, GenerationConfig()
    try:
        assert stop_tokens(other) == (257,)
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>\n{% endfor %}"
        assert stop_tokens(other) == (257, 259)
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        module.generation_config = GenerationConfig(eos_token_id=[7, 9])
        assert stop_tokens(other) == (7, 9, 257)
        tokenizer.chat_template = None
        module.generation_config = GenerationConfig(eos_token_id=7)
        assert stop_tokens(other) == (7, 257)
    finally:
        module.generation_config = before


def test_text_comes_bit_by_bit(llama: tuple[AdaptedModel, Adapter]) -> None:
    said: list[str] = []
    ids = np.array([97, 98], np.int32)
    (tokens,) = generate(*llama, [ids], max_new_tokens=8, on_text=said.append)
    assert "".join(said) == tiny.tokenizer().decode(tokens)


def test_what_cannot_be_asked_is_refused(llama: tuple[AdaptedModel, Adapter], prompts: list[Ids]) -> None:
    assert generate(*llama, [], max_new_tokens=1) == []
    limit = 2048
    long = np.zeros(limit - 1, np.int32)
    with pytest.raises(DataError, match=r"prompt 2 has 2047 tokens, which with max_new_tokens = 2 .* 2048 positions"):
        generate(*llama, [prompts[0], long], max_new_tokens=2)
    with pytest.raises(DataError, match="prompt 1 is empty"):
        generate(*llama, [np.zeros(0, np.int32)], max_new_tokens=2)
    for wrong in (
        {"max_new_tokens": 0},
        {"batch_size": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 0.5},  # nothing is drawn at temperature 0
    ):
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is "):
            generate(*llama, prompts, **{"max_new_tokens": 2} | wrong)  # type: ignore[arg-type]
