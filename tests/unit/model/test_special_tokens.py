"""The letters of special tokens in rows, and the special tokens that a tokenizer writes by itself."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from capfl.errors import DataError
from capfl.model import tiny
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.tokens import encode, prompt_ids
from capfl.types import Prompt
from chats import EOS, HI, LONG, ONCE, TRIMS, TURNS, read, remarked


def beginning(special: bool = True) -> PreTrainedTokenizerFast:
    """The byte tokenizer, which now puts <s> before every text, and has a pad token that is its end of sequence."""
    tokenizer = tiny.tokenizer()
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if special:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=ONCE
    )


def _ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    made = encode(prompt, "letter", tokenizer, 99)
    asked = prompt_ids(prompt, tokenizer, 99)
    return [made.train.ids.tolist(), made.train.targets.tolist(), list(made.letters), asked.tolist()]


def test_a_text_begins_once_also_where_it_is_cut() -> None:
    tokenizer = beginning()
    prompt = Prompt("0123456789", ("xyz",), 0)
    for length, text in ((99, "<s>0123456789xyz"), (9, "<s>6789xyz"), (6, "<s>9xyz")):
        example = encode(prompt, "letter", tokenizer, length)
        assert read(example.train, tokenizer) == (text, ["xyz</s>"])
        assert tokenizer.decode(prompt_ids(prompt, tokenizer, length - 4).tolist()) == text.removesuffix("xyz")
    with pytest.raises(DataError, match="an answer of 4 tokens does not fit"):
        encode(prompt, "letter", tokenizer, 5)
    for template in (ONCE, None):
        tokenizer.chat_template = template
        for length in (199, 66):
            row = encode(TURNS, "letter", tokenizer, length).train
            assert row.ids[0] == 256
            assert (row.ids == 256).sum() == 1
    letter = encode(Prompt("0123456789:", (" A", " B"), 1, ends=False), "letter", tokenizer, 8).train
    assert read(letter, tokenizer) == ("<s>6789: ", ["B"])


def test_what_a_tokenizer_puts_behind_a_text_stands_in_no_prompt() -> None:
    """The model would be asked to go on after an end of sequence, and option letters would not be last."""
    plain, tokenizer = beginning(), beginning()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", EOS)]
    )
    for prompt in (
        Prompt("ab", ("cd",), 0), Prompt("</s>", ("x",), 0), Prompt("q:", (" A", " B"), 1, ends=False),
    ):  # fmt: skip
        for own, other in zip(*(_ids(prompt, one) for one in (plain, tokenizer)), strict=True):
            assert own == other


TYPED = "1 <s>10</s> <pad>"


@pytest.mark.parametrize("template", [tiny.CHAT, ONCE, None])
def test_the_letters_of_a_special_token_are_letters(template: str | None) -> None:
    tokenizer = beginning(special=template is not tiny.CHAT)
    tokenizer.chat_template = template
    chat = Prompt("", (TYPED,), 0, messages=(("system", TYPED), ("user", TYPED), ("assistant", TYPED), ("user", TYPED)))
    examples, said = remarked([chat, Prompt(TYPED, (TYPED,), 0), LONG], tokenizer)
    assert "2 items have the letters of a special token in them, such as '<s>': they are read as text" in said
    ends = {tiny.CHAT: 4, ONCE: 4, None: 1}[template]  # those that the template writes, but for the last answer's
    row = examples[0].train
    assert (row.ids == EOS).sum() == ends
    assert (row.targets == EOS).sum() == 2
    assert tokenizer.decode(row.ids.tolist()).count(TYPED) == 5
    assert [answer.strip() for answer in read(row, tokenizer)[1]] == [f"{TYPED}</s>"] * 2
    row = examples[1].train
    assert (row.ids == EOS).sum() == 0
    assert read(row, tokenizer) == (("" if template is tiny.CHAT else "<s>") + TYPED * 2, [f"{TYPED}</s>"])
    asked = prompt_ids(chat, tokenizer, 199)
    assert examples[0].train.ids[: len(asked)].tolist() == asked.tolist()


def test_a_tokenizer_that_begins_every_text_with_a_space_begins_a_chat_once() -> None:
    core = Tokenizer(models.BPE(vocab={letter: k for k, letter in enumerate("▁<>|/Habeimnorsuty")}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.add_special_tokens(["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=TRIMS)
    row = encode(Prompt("", ("a<s>bin",), 0, messages=(("user", "in</s>me <s>"),)), "letter", tokenizer, 99).train
    assert "".join(tokenizer.convert_ids_to_tokens(row.ids.tolist())) == "▁<|user|>in</s>me▁<s></s><|assistant|>a<s>bin"
    assert tokenizer.convert_ids_to_tokens(row.targets.tolist()) == [*"a<s>bin", "</s>"]


def test_a_tokenizer_that_cannot_read_them_as_text_is_told_by_the_row() -> None:
    core = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "?": 2}, unk_token="?"))  # where </s> is a word, too
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="?")
    assert encode(Prompt("a a", ("a",), 0), "letter", tokenizer, 99)
    with pytest.raises(DataError, match="'</s>' is in the text, and this tokenizer cannot read it as text; delete it"):
        encode(Prompt("a </s> a", ("a",), 0), "letter", tokenizer, 99)
    with pytest.raises(DataError, match=r"a message has the code point U\+FDD0, which is no character; delete it"):
        encode(Prompt("", ("a\ufdd0",), 0, messages=(HI,)), "letter", tiny.tokenizer(), 99)


def test_the_end_is_learnt_where_it_is_the_pad_token_too(adapt) -> None:  # type: ignore[no-untyped-def]
    tokenizer = beginning()
    rows = [encode(Prompt(text, ("b",), 0), "letter", tokenizer, 99).train for text in ("a", "a" * 20)]
    batch = Rows(rows).batch(adapt(), HiddenCache(2**20), [0, 1])
    assert batch.targets.tolist() == [65, EOS, 65, EOS]
    assert batch.counts == [2, 2]
