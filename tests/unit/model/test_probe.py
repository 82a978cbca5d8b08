"""What a base is asked once it is loaded, with small stand-ins that fail one question each."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from capfl.errors import ModelError
from capfl.model import tiny
from capfl.model.probe import check_base, check_tokenizer, check_tokens, probe_ids
from capfl.model.tokens import Example, Row

WHOLE = {"causal": lambda states: states.cumsum(1)}
FAULTS = {
    "reads ahead": (
        lambda states: states.cumsum(1) + states.mean(1, keepdim=True),
        "no causal language model: a later",
    ),
    "counts": (lambda states: states.cumsum(1) * states.shape[1], "depend on the length of its input or on what else"),
    "mixes rows": (lambda states: states.cumsum(1) + states[-1:, :1], "or on what else is in a batch"),
    "overflows": (lambda states: states.cumsum(1) / 0, r"logits of m are not finite in float32; restore its weights"),
    "raises": (lambda states: states @ states, r"m cannot be run on text alone \(RuntimeError: .*; give a causal"),
}


class Stand(nn.Module):
    """A model of an embedding, a mixture of tokens, and a head."""

    def __init__(self, mix: object, rows: int = tiny.VOCAB) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix = nn.Embedding(rows, 8), mix
        self.config = SimpleNamespace(to_dict=lambda: {"image_token_id": 3, "eos_token_id": [1, 2]})

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.mix(self.embed(input_ids)) @ self.embed.weight.T)  # type: ignore[operator]


def test_a_causal_model_is_accepted() -> None:
    check_base(Stand(WHOLE["causal"]), tiny.tokenizer(), "m", torch.float32)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_run_could_not_work_with_is_refused(fault: str) -> None:
    mix, said = FAULTS[fault]
    with pytest.raises(ModelError, match=said):
        check_base(Stand(mix), tiny.tokenizer(), "m", torch.float32)


def test_logits_that_overflow_in_half_precision_say_which_precision_does_not() -> None:
    with pytest.raises(ModelError, match=r"not finite in float16; use model\.dtype = float32 or bfloat16"):
        check_base(Stand(FAULTS["overflows"][0]), tiny.tokenizer(), "m", torch.float16)


def test_weights_that_the_passes_do_not_meet_are_finite_too() -> None:
    model = Stand(WHOLE["causal"])
    for value in (torch.inf, -torch.inf, torch.nan):
        model.embed.weight.data[-1, 0] = value
        with pytest.raises(ModelError, match=r"weights that are not finite in float32, in embed\.weight; restore its"):
            check_base(model, tiny.tokenizer(), "m", torch.float32)


def test_no_token_of_the_probe_stands_for_an_image() -> None:
    assert probe_ids(Stand(None), 4).tolist() == [1, 2, 4, 5]
    assert probe_ids(Stand(None, rows=4), 4).tolist() == [1, 2, 1, 2]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """With a token for images that nothing embeds, as Gemma 3 has it."""
    made = tiny.tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


def test_the_embedding_covers_what_a_text_can_have(tokenizer: PreTrainedTokenizerFast) -> None:
    check_tokenizer(Stand(None), tokenizer, "m")
    with pytest.raises(ModelError, match=r"tokenizer of m has 8 tokens, .* beyond the 250 rows .*embedding; give the"):
        check_tokenizer(Stand(None, rows=250), tiny.tokenizer(), "m")
    tokenizer.eos_token = "<image>"
    with pytest.raises(ModelError, match=r"has 1 tokens, '<image>' for one"):
        check_tokenizer(Stand(None), tokenizer, "m")


def test_a_row_with_a_token_that_nothing_embeds_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    def example(*ids: int) -> Example:
        return Example(Row(np.array(ids[:-1], np.int32), np.array(ids[-1:], np.int32)), 0)

    check_tokens(Stand(None), tokenizer, "m", [example(1, 2, tiny.VOCAB - 1)])
    for bad in (example(1, tiny.VOCAB, 2), example(1, 2, tiny.VOCAB)):
        with pytest.raises(
            ModelError, match=r"token '<image>', which is beyond the 259 rows of the embedding of m; use"
        ):
            check_tokens(Stand(None), tokenizer, "m", [bad])
