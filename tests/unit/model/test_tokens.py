"""Prompts as tokens: what is read, what has to be predicted, and what never gets lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from capfl.config.data import DataConfig
from capfl.data import render
from capfl.errors import DataError, ModelError
from capfl.model.remarks import remarks
from capfl.model.tokens import Row, encode, encode_all
from capfl.types import Item, Prompt

EOS = 257
CHAT = Prompt("", ("Hello",), 0, messages=(("system", "Be brief"), ("user", "Hi")))


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
    other = encode(render(replace(item, answer=0), "letter"), "letter", tokenizer, 99)
    assert other.train.ids.tolist() == example.train.ids.tolist()  # the prompt does not say which answer is right
    joined = merging(("Ġ", "A"), ("Ġ", "B"))
    example = encode(Prompt("Label:", (" A", " B"), 0, ends=False), "letter", joined, 99)
    assert read(example.train, joined) == ("Label:", " A")  # here space and letter are one token


# -- completions, and options scored by text ---------------------------------------------------------------


def test_a_completion_ends_with_end_of_sequence(tokenizer):
    example = encode(Prompt("The sky is", (" blue",), 0), "letter", tokenizer, 99)
    whole = ids("The sky is blue", tokenizer)
    assert example.train.ids.tolist() == whole
    assert example.train.targets.tolist() == [*ids(" blue", tokenizer), EOS]
    assert (example.letters, example.options) == ((), ())
    typed = encode(Prompt("q", ("a</s>",), 0), "letter", tokenizer, 99)
    letters = tokenizer("a</s>", split_special_tokens=True)["input_ids"]
    assert typed.train.targets.tolist() == [*letters, EOS]  # letters that somebody wrote are letters
    assert len(letters) == 5


def test_prompt_and_answer_are_tokenised_together():
    tokenizer = merging(("b", "c"))
    example = encode(Prompt("ab", ("cd",), 0), "letter", tokenizer, 99)
    a, bc, d = ids("abcd", tokenizer)
    assert example.train.ids.tolist() == [a, bc, d]
    assert example.train.targets.tolist() == [bc, d, tokenizer.eos_token_id]
    apart = encode(Prompt("a", ("bcd",), 0), "letter", tokenizer, 99)
    assert (example.joined, apart.joined) == (True, False)
    items = [Item("a", completion="bcd"), Item("ab", completion="cd", place="own:2")]
    (said,) = remarks(items, [apart, example], DataConfig(), tokenizer)
    assert said.startswith(
        "WARNING: in 1 of 2 items prompt and completion meet within a token, such as own:2: the model"
    )


def test_options_by_text_have_a_row_each_without_end_of_sequence(tokenizer):
    item = Item("Pick", ("red", "blue"), answer=1, listed=False)
    example = encode(render(item, "text"), "text", tokenizer, 99)
    assert [read(row, tokenizer) for row in example.options] == [
        ("Text: Pick\nLabel: re", " red"),
        ("Text: Pick\nLabel: blu", " blue"),
    ]
    assert example.train.targets.tolist() == [*ids(" blue", tokenizer), EOS]
    assert (example.right, example.letters) == (1, ())


# -- length --------------------------------------------------------------------------------------------


def test_a_long_prompt_loses_its_beginning_and_never_its_answer(tokenizer):
    for max_length, said in ((5, "9xyz"), (13, "123456789xyz"), (14, "0123456789xyz"), (20, "0123456789xyz")):
        row = encode(Prompt("0123456789", ("xyz",), 0), "letter", tokenizer, max_length).train
        assert row.targets.tolist() == [*ids("xyz", tokenizer), EOS]
        assert tokenizer.decode(row.ids.tolist()) == said
    letter = encode(Prompt("0123456789:", (" A", " B"), 1, ends=False), "letter", tokenizer, 8).train
    assert read(letter, tokenizer) == ("56789: ", "B")


LETTERS = Prompt("Label:", (" A", " B"), 0, ends=False)


@pytest.mark.parametrize(
    ("prompt", "change", "error", "said"),
    [
        (Prompt("0123", ("wxyz",), 0), {}, DataError, r"an answer of 5 tokens does not fit into data\.max_length = 5"),
        (Prompt("", ("a",), 0), {}, DataError, "at least one token each"),
        (Prompt("a", ("",), 0, ends=False), {}, DataError, "at least one token each"),
        (CHAT, {}, DataError, "an answer of 6 tokens does not fit into data.max_length = 5; raise max_length, or cut"),
        (CHAT, {"chat_template": "{{ raise_exception('no') }}"}, DataError, "roles system, user, assistant: no; order"),
        (CHAT, {"eos_token": None}, ModelError, "no end-of-sequence token; set eos_token"),
        (Prompt("q", ("a",), 0), {"eos_token": None}, ModelError, "no end-of-sequence token; set eos_token"),
        (Prompt("Label:", (" xA", " yB"), 0, ends=False), {}, ModelError, "a token of its own"),
        (Prompt("Label:", (" A", " A"), 0, ends=False), {}, ModelError, "a token of its own"),
    ],
)
def test_what_cannot_be_used(tokenizer, prompt, change, error, said):
    for name, value in change.items():
        setattr(tokenizer, name, value)
    with pytest.raises(error, match=said):
        encode(prompt, "letter", tokenizer, 5)
    assert encode(LETTERS, "letter", tokenizer, 99).letters  # which need none of these
    with pytest.raises(ModelError, match=r"give each of  A,  B a token of its own; use data.scoring = text"):
        encode(LETTERS, "letter", merging(("Ġ", "A")), 99)


def test_all_items_that_cannot_be_used_are_counted(tokenizer):
    prompts = [Prompt("q", ("a" * n,), 0) for n in range(1, 20)]
    with pytest.raises(
        DataError, match=r"^12 of 19 items cannot be used:\n  item 8: 'aaaaaaaa': an answer of 9 tokens "
    ) as caught:
        encode_all(prompts, "letter", tokenizer, 9)
    assert str(caught.value).endswith("\n    and 11 more like it: item 9, item 10, item 11, item 12, item 13, ...")
    assert len(encode_all(prompts, "letter", tokenizer, 99)) == 19


# -- chat ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["{{ eos_token }}\n", ""])
def test_chat_predicts_the_last_answer_and_its_end(tokenizer, end):
    """Whatever a template writes there; what stands behind the end is no target."""
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", end)
    row = encode(CHAT, "letter", tokenizer, 99).train
    text, answer = read(row, tokenizer)
    stop = end.replace("{{ eos_token }}", "</s>")
    assert text == f"<|system|>Be brief{stop}<|user|>Hi{stop}<|assistant|>Hello"
    assert answer == "Hello</s>"
    assert row.targets[-1] == EOS  # a special token, not its letters
