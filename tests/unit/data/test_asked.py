"""Rows that ask are read as rows that train, with or without their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capfl.data import read_file, render
from capfl.data.asked import held_asked
from capfl.errors import DataError
from capfl.types import Prompt

HI = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "Yes?"}


def prompts(*rows: Any) -> list[Prompt]:
    return [render(item, "letter") for item in held_asked(rows)]


def test_a_text_is_a_prompt() -> None:
    text, row, answered = prompts(
        " Translate:\n", {"prompt": " Translate:\n"}, {"prompt": " Translate:\n", "completion": "x"}
    )
    assert text.text == row.text == answered.text == " Translate:\n"
    assert prompts() == []


def test_messages_end_where_the_assistant_answers() -> None:
    asked = (("user", "Hi"),)
    for row in ({"messages": [HI]}, {"messages": [HI, YES]}, {"prompt": [HI]}, {"prompt": [HI], "completion": [YES]}):
        assert [prompt.messages for prompt in prompts(row)] == [asked], row
    (longer,) = prompts({"messages": [HI, YES, HI]})
    assert longer.messages == (("user", "Hi"), ("assistant", "Yes?"), ("user", "Hi"))


def test_it_reads_as_the_row_that_trains(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "x"}]}'
    )
    (trained,) = read_file(tmp_path / "rows.jsonl")
    (asked,) = prompts({"messages": [{"role": "user", "content": " Hi "}]})
    assert asked.messages == render(trained, "letter").messages


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?"}, "give a prompt, or messages; the row has 'question'"),
        ({"text": "a", "label": "b"}, "a row with labels or options is for `capfl eval` and `predict`"),
        ({"question": "a", "choices": ["b", "c"], "answer": 0}, "a row with labels or options"),
        ({"prompt": 3}, "field 'prompt' is 3; it must be a string"),
        ({"prompt": " "}, "field 'prompt' is empty"),
        ({"messages": []}, "field 'messages' is \\[\\]"),
        ({"messages": [YES]}, "put a user message before"),
        ({"messages": [{"role": "bot", "content": "a"}]}, r"field 'messages\[1\].role' is 'bot'"),
        (7, "is a int; give one dict a row"),
    ],
)  # fmt: skip
def test_what_asks_nothing_is_refused(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"1 of 2 rows of the prompts cannot be used:\n  the prompts: row 2: .*{said}"):
        held_asked(["fine", row])
