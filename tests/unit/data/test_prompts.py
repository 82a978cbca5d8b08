"""Exact prompts: the one template for training and evaluation; and what is too long for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.data.prompts import render
from capfl.errors import DataError
from capfl.model import tiny
from capfl.model.tokens import encode_all
from capfl.types import Item, Prompt

LISTED = Item("2 + 2?", ("three", "four"), 1)
LABEL = Item("hello", ("greeting", "question"), 0, listed=False)
CHAT = (("user", "Hi"),)


@pytest.mark.parametrize(
    ("item", "scoring", "prompt"),
    [
        (LISTED, "letter", Prompt("Question: 2 + 2?\nA. three\nB. four\nAnswer:", (" A", " B"), 1, ends=False)),
        (LISTED, "text", Prompt("Question: 2 + 2?\nAnswer:", (" three", " four"), 1)),
        (LABEL, "letter", Prompt("Text: hello\nLabel:", (" A", " B"), 0, ends=False)),
        (LABEL, "text", Prompt("Text: hello\nLabel:", (" greeting", " question"), 0)),
        (Item("The sky is", completion=" blue"), "letter", Prompt("The sky is", (" blue",), 0)),
        (Item("", completion="Hello", messages=CHAT), "text", Prompt("", ("Hello",), 0, CHAT)),
    ],
)
def test_exact_prompts(item, scoring, prompt):
    assert render(item, scoring) == prompt


@given(st.lists(st.text(min_size=1), min_size=2, max_size=26), st.booleans(), st.sampled_from(["letter", "text"]))
def test_the_prompt_does_not_depend_on_the_answer(choices, listed, scoring):
    item = Item("q", tuple(choices), 0, listed=listed)
    first = render(item, scoring)
    prompt = render(replace(item, answer=len(choices) - 1, fields={"label": "secret"}), scoring)
    assert (prompt.text, prompt.answers, prompt.right) == (first.text, first.answers, len(choices) - 1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item("q", tuple(map(str, range(27)))), r"27 choices are more than the letters A to Z; set data.scoring"),
        (Item("q", ("a",), 0), "give two or more choices"),
        (Item("q", ("a", "b"), 2), "the index of the right one"),
        (Item("q", ("a", "b"), -1), "the index of the right one"),
    ],
)  # fmt: skip
def test_items_that_cannot_be_rendered(item, message):
    with pytest.raises(DataError, match=message):
        render(item, "letter")


def test_all_answers_that_are_too_long_are_found_at_once():
    prompts = [render(Item("q", completion="word " * n), "text") for n in (1, 40, 2, 50)]
    with pytest.raises(DataError) as caught:
        encode_all(prompts, "text", tiny.tokenizer(), 32)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 4 items cannot be used:"
    assert lines[1].startswith("  item 2 ('word word")
    assert "does not fit into data.max_length = 32; raise max_length" in lines[2]
    encode_all(prompts, "text", tiny.tokenizer(), 512)
