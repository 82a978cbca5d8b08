"""Rows that ask are read as rows that train, with or without their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capfl.data import read_file, render
from capfl.data.asked import held_asked, held_choices
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
    for alone in ("hello", {"prompt": "x"}):
        with pytest.raises(DataError, match=r"is one row; give a list of rows, such as \["):
            held_asked(alone)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"is one row; give a list of rows, such as \["):
            held_choices(alone, ["a", "b"])  # type: ignore[arg-type]


def test_messages_end_where_the_assistant_answers() -> None:
    asked = (("user", "Hi"),)
    human, gpt = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}
    for row in (
        {"messages": [HI]}, {"messages": [HI, YES]}, {"prompt": [HI]}, {"prompt": [HI], "completion": [YES]},
        {"conversations": [human]}, {"conversations": [human, gpt]}, {"messages": json.dumps([HI])},
        {"prompt": json.dumps([HI])},
        {"instruction": "Hi"}, {"instruction": "Hi", "output": "Yes?"},
    ):  # fmt: skip
        assert [prompt.messages for prompt in prompts(row)] == [asked], row
    (longer,) = prompts({"messages": [HI, YES, HI]})
    assert longer.messages == (("user", "Hi"), ("assistant", "Yes?"), ("user", "Hi"))
    (other,) = prompts({"instruction": "Add", "input": "1 and 2", "system": "Be brief"})
    assert other.messages == (("system", "Be brief"), ("user", "Add\n\n1 and 2"))


def test_columns_have_other_names() -> None:
    columns = {"prompt": "Question", "completion": "Answer"}
    for row in ("a", {"Question": "a"}, {"Question": "a", "Answer": "b"}):
        (item,) = held_asked([row], columns)
        assert render(item, "letter").text == "a"


def test_it_reads_as_the_row_that_trains(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "x"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": chat}))
    (trained,) = read_file(tmp_path / "rows.jsonl")
    (asked,) = prompts({"messages": chat[:1]})
    assert asked.messages == render(trained, "letter").messages


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"question": "?"},
            "asks nothing, it has 'question'; give one of messages, conversations, prompt, instruction",
        ),
        ({"text": "a", "label": "b"}, "rows with labels or options are for `capfl predict` and `capfl eval`"),
        ({"question": "a", "choices": ["b", "c"], "answer": 0}, "asks nothing"),
        ({"prompt": 3}, "field 'prompt' is 3; it must be a string"),
        ({"prompt": " "}, "field 'prompt' is empty"),
        ({"messages": [HI, YES]}, "is not the format of this row"),
        (7, "is a int; give one dict a row"),
    ],
)
def test_what_asks_nothing_is_refused(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"1 of 2 rows of the prompts cannot be used:\n  the prompts: row 2: .*{said}"):
        held_asked(["fine", row])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "field 'messages' has no messages"),
        ([YES], "put a user message before"),
        ([{"role": "bot", "content": "a"}], r"field 'messages\[0\].role' is 'bot'"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=rf"the prompts: row 1: .*{said}"):
        held_asked([{"messages": value}])
