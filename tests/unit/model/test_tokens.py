"""Prompts as tokens: what is read, what has to be predicted, and what never gets lost."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from capfl.data import render
from capfl.errors import DataError, ModelError
from capfl.model.tokens import Row, encode
from capfl.types import Item, Prompt

EOS = 257


def merging(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that joins the given pairs."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def ids(text: str, tokenizer) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def read(row: Row, tokenizer) -> tuple[str, str]:
    """(all that the model reads, what it has to write), as text."""
    return tokenizer.decode(row.ids.tolist()), tokenizer.decode(row.targets.tolist())


# -- letters -----------------------------------------------------------------------------------------


def test_a_letter_follows_the_whole_prompt(tokenizer):
    item = Item("2 + 2?", ("3", "4", "5"), answer=1)
    example = encode(render(item, "letter"), "letter", tokenizer, 99)
    # the space before the letter is a byte of its own here, and belongs to the prompt
    assert read(example.train, tokenizer) == ("Question: 2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer: ", "B")
    assert tokenizer.decode(list(example.letters)) == "ABC"
    assert (example.right, example.options) == (1, ())
    assert example.train.targets.tolist() == [example.letters[1]]


def test_the_prompt_does_not_depend_on_the_right_answer(tokenizer):
    rows = [encode(render(Item("q", ("x", "y"), answer), "letter"), "letter", tokenizer, 99).train for answer in (0, 1)]
    assert rows[0].ids.tolist() == rows[1].ids.tolist()
    assert rows[0].targets.tolist() != rows[1].targets.tolist()


def test_letters_that_join_the_space_are_tokens_as_well():
    tokenizer = merging(("Ġ", "A"), ("Ġ", "B"))
    example = encode(Prompt("Label:", (" A", " B"), 0, ends=False), "letter", tokenizer, 99)
    assert read(example.train, tokenizer) == ("Label:", " A")


def test_letters_without_a_token_each_are_refused():
    with pytest.raises(ModelError, match=r"give each of  A,  B a token of its own; use data.scoring = text"):
        encode(Prompt("Label:", (" A", " B"), 0, ends=False), "letter", merging(("Ġ", "A")), 99)
    with pytest.raises(ModelError, match="a token of its own"):  # the same token for both
        encode(Prompt("Label:", (" xA", " yA"), 0, ends=False), "letter", merging(), 99)


# -- completions, and options scored by text ---------------------------------------------------------------


def test_a_completion_ends_with_end_of_sequence(tokenizer):
    example = encode(Prompt("The sky is", (" blue",), 0), "letter", tokenizer, 99)
    whole = ids("The sky is blue", tokenizer)
    assert example.train.ids.tolist() == whole
    assert example.train.targets.tolist() == [*ids(" blue", tokenizer), EOS]
    assert (example.letters, example.options) == ((), ())


def test_an_answer_that_already_ends_is_not_ended_twice(tokenizer):
    example = encode(Prompt("q", ("a</s>",), 0), "letter", tokenizer, 99)
    assert example.train.targets.tolist() == [*ids("a", tokenizer), EOS]


def test_prompt_and_answer_are_tokenised_together():
    tokenizer = merging(("b", "c"))
    example = encode(Prompt("ab", ("cd",), 0), "letter", tokenizer, 99)
    a, bc, d = ids("abcd", tokenizer)
    assert example.train.ids.tolist() == [a, bc, d]
    assert example.train.targets.tolist() == [bc, d, tokenizer.eos_token_id]


def test_options_by_text_have_a_row_each_without_end_of_sequence(tokenizer):
    item = Item("Pick", ("red", "blue"), answer=1, listed=False)
    example = encode(render(item, "text"), "text", tokenizer, 99)
    assert [read(row, tokenizer) for row in example.options] == [
        ("Text: Pick\nLabel: re", " red"),
        ("Text: Pick\nLabel: blu", " blue"),
    ]
    assert example.train.targets.tolist() == [*ids(" blue", tokenizer), EOS]
    assert (example.right, example.letters) == (1, ())


def test_the_targets_are_predicted_by_the_last_positions(tokenizer):
    row = encode(Prompt("abc", ("de",), 0), "letter", tokenizer, 99).train
    following = [*row.ids.tolist()[1:], int(row.targets[-1])]
    assert following[-len(row.targets) :] == row.targets.tolist()


# -- length --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", range(5, 14))
def test_a_long_prompt_loses_its_beginning_and_never_its_answer(tokenizer, max_length):
    row = encode(Prompt("0123456789", ("xyz",), 0), "letter", tokenizer, max_length).train
    assert row.targets.tolist() == [*ids("xyz", tokenizer), EOS]
    assert len(row.ids) + 1 == min(max_length, 14)
    assert "0123456789xyz".endswith(tokenizer.decode(row.ids.tolist()))


def test_a_letter_keeps_the_end_of_its_prompt(tokenizer):
    row = encode(Prompt("0123456789:", (" A", " B"), 1, ends=False), "letter", tokenizer, 8).train
    assert read(row, tokenizer) == ("56789: ", "B")


def test_an_answer_that_is_too_long_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"an answer of 5 tokens does not fit into data\.max_length = 5; raise"):
        encode(Prompt("0123", ("wxyz",), 0), "letter", tokenizer, 5)
    assert len(encode(Prompt("0123", ("wxyz",), 0), "letter", tokenizer, 6).train.ids) == 5


@pytest.mark.parametrize("prompt", [Prompt("", ("a",), 0), Prompt("a", ("",), 0, ends=False)])
def test_an_empty_prompt_or_answer_is_refused(tokenizer, prompt):
    with pytest.raises(DataError, match="at least one token each"):
        encode(prompt, "letter", tokenizer, 99)


# -- chat ------------------------------------------------------------------------------------------------

CHAT = Prompt("", ("Hello",), 0, messages=(("system", "Be brief"), ("user", "Hi")))


def test_chat_predicts_the_last_answer_and_its_end(tokenizer):
    row = encode(CHAT, "letter", tokenizer, 99).train
    text, answer = read(row, tokenizer)
    assert text == "<|system|>Be brief</s><|user|>Hi</s><|assistant|>Hello"
    assert answer == "Hello</s>"
    assert row.targets[-1] == EOS
    assert row.ids.tolist().count(EOS) == 2  # special tokens, not their letters


def test_what_a_template_writes_behind_the_end_is_not_a_target(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "{{ eos_token }}\n")
    row = encode(CHAT, "letter", tokenizer, 99).train
    assert read(row, tokenizer)[1] == "Hello</s>"


def test_a_template_that_does_not_end_a_turn_is_ended(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "")
    assert read(encode(CHAT, "letter", tokenizer, 99).train, tokenizer)[1] == "Hello</s>"


def test_a_tokenizer_without_chat_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template; use prompt/completion rows"):
        encode(CHAT, "letter", tokenizer, 99)


def test_roles_that_the_template_refuses_are_named(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('user first') }}"
    with pytest.raises(DataError, match="refuses messages with roles system, user: user first"):
        encode(CHAT, "letter", tokenizer, 99)


# -- tokenizers that lack something ------------------------------------------------------------------------


def test_without_end_of_sequence_only_letters_can_be_learnt(tokenizer):
    tokenizer.eos_token = None
    for prompt in (Prompt("q", ("a",), 0), CHAT):
        with pytest.raises(ModelError, match="no end-of-sequence token; set eos_token"):
            encode(prompt, "letter", tokenizer, 99)
    assert encode(Prompt("q", (" A", " B"), 0, ends=False), "letter", tokenizer, 99).letters


def test_no_pad_token_is_needed(tokenizer):
    tokenizer.pad_token = None
    assert len(encode(Prompt("q", ("a",), 0), "letter", tokenizer, 99).train.targets) == 2
    assert encode(CHAT, "letter", tokenizer, 99).train.targets[-1] == EOS
