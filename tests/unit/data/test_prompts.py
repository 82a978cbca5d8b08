"""Exact prompts: the one template for training and evaluation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.data.prompts import render
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
