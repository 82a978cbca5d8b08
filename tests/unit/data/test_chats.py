"""Rows of text as people have them: chats in three spellings, instructions, and columns of any name."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from capfl.config import load_config, to_toml
from capfl.config.data import DataConfig
from capfl.config.load import from_toml, load_command
from capfl.data import deal_rows, load_items
from capfl.data.formats import check_file, read_file, read_held
from capfl.errors import ConfigError, DataError
from capfl.types import Item

USER, BOT, SYSTEM = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("system", "Be")))
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
HELLO = Item("", completion="Hello", messages=(("user", "Hi"),))
LONG = Item("", completion="Hello", messages=(("system", "Be"), ("user", "Hi"), ("assistant", "Hello"), ("user", "Hi")))
ADDED = Item("", completion="2", messages=(("user", "Add\n\n1 + 1"),))


def item_of(row: dict[str, Any], **columns: str) -> Item:
    (item,) = read_held("a", [row], columns=columns)
    return item


@pytest.mark.parametrize(
    ("row", "item"),
    [
        ({"messages": [SYSTEM, USER, BOT, USER, BOT]}, LONG),
        ({"messages": json.dumps([USER, BOT])}, HELLO),  # in a cell of CSV
        ({"messages": [USER | {"name": "Ann", "tool_calls": None, "weight": 1}, BOT], "tools": []}, HELLO),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, BOT]},
            HELLO,
        ),
        ({"messages": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}}, HELLO),  # as older tables have it
        ({"conversations": [HUMAN, GPT]}, HELLO),
        ({"conversations": [{"from": "system", "value": "Be"}, HUMAN, GPT, HUMAN, GPT]}, LONG),
        ({"system": "Be", "conversations": [HUMAN, GPT, HUMAN, GPT]}, LONG),
        ({"conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]}, HELLO),
        ({"conversations": [USER, BOT]}, HELLO),
        ({"messages": (USER, BOT)}, HELLO),
        ({"messages": np.array([USER, BOT])}, HELLO),  # as pandas reads Parquet
        ({"instruction": "Add", "input": "1 + 1", "output": "2"}, ADDED),
        ({"instruction": "Add\n\n1 + 1", "input": float("nan"), "output": "2"}, ADDED),
        (
            {"instruction": "Add", "input": "[]", "output": "2"},
            Item("", completion="2", messages=(("user", "Add\n\n[]"),)),
        ),
        ({"instruction": "Hi", "output": "  if a:\n"}, Item("", completion="  if a:\n", messages=(("user", "Hi"),))),
        ({"instruction": "Hi", "input": "", "output": "Hello", "text": "### Hi"}, HELLO),
        ({"instruction": "Hi", "output": "Hello", "history": []}, HELLO),
        (
            {"instruction": "Hi", "input": None, "output": "Hello", "system": "Be"},
            Item("", completion="Hello", messages=(("system", "Be"), ("user", "Hi"))),
        ),
        (
            {"prompt": [SYSTEM, USER, BOT, USER], "completion": [BOT, USER, BOT]},
            Item("", completion="Hello", messages=(*LONG.messages, ("assistant", "Hello"), ("user", "Hi")), given=4),
        ),
        ({"prompt": " a", "completion": "b\n"}, Item(" a", completion="b\n")),
        # what tables have where nothing is
        ({"conversations": [HUMAN, GPT], "system": "", "tools": "[]", "image": None, "images": []}, HELLO),
        ({"instruction": "Hi", "output": "Hello", "history": "[]", "tools": float("nan")}, HELLO),
        ({"messages": [USER, BOT | {"train": True, "audio": None}], "system": None}, HELLO),
        # a system message beside the chat, and in it as well
        ({"messages": [USER, BOT, USER, BOT], "system": "Be"}, LONG),
        ({"messages": [SYSTEM, USER, BOT, USER, BOT], "system": "Be"}, LONG),
        ({"system": "Be", "prompt": [USER, BOT, USER], "completion": [BOT]}, replace(LONG, given=4)),
        # messages in cells of CSV; one list alone is a text
        ({"prompt": json.dumps([USER]), "completion": json.dumps([BOT])}, replace(HELLO, given=1)),
        ({"prompt": "[INST] Hi", "completion": json.dumps([BOT])}, Item("[INST] Hi", completion=json.dumps([BOT]))),
        ({"prompt": "a", "completion": "b", "label": True}, Item("a", completion="b")),
    ],
)
def test_a_chat_in_any_spelling(row: dict[str, Any], item: Item) -> None:
    read = item_of(row)
    assert (read.messages, read.completion, read.question) == (item.messages, item.completion, item.question)
    assert read.given == item.given


COLUMNS = {"prompt": "Question", "completion": "Answer"}


@pytest.mark.parametrize(
    ("row", "columns", "item"),
    [
        ({"Question": "q", "Answer": "a"}, COLUMNS, Item("q", completion="a")),
        ({"Question": "q", "Answer": "a", "messages": [USER, BOT], "prompt": "p"}, COLUMNS, Item("q", completion="a")),
        ({"talk": [USER, BOT]}, {"messages": "talk"}, HELLO),
        ({"talk": [HUMAN, GPT]}, {"messages": "talk"}, HELLO),
        ({"Task": "Add", "x": "1 + 1", "output": "2"}, {"instruction": "Task", "input": "x"}, ADDED),
        ({"q": "?", "options": ["x", "y"], "key": 1}, {"question": "q", "choices": "options", "answer": "key"},
         Item("?", ("x", "y"), 1)),
        ({"q": "?", "choices": '["x", "y"]', "key": "B"}, {"question": "q", "answer": "key"}, Item("?", ("x", "y"), 1)),
    ],
)  # fmt: skip
def test_columns_may_have_other_names(row: dict[str, Any], columns: dict[str, str], item: Item) -> None:
    read = item_of(row, **columns)
    assert (read.question, read.choices, read.answer) == (item.question, item.choices, item.answer)
    assert (read.messages, read.completion) == (item.messages, item.completion)


def test_columns_are_a_table_of_the_config_and_a_flag(write) -> None:  # type: ignore[no-untyped-def]
    spelt = ["prompt=Question,completion=Answer", json.dumps(COLUMNS), '{prompt = "Question", completion = "Answer"}']
    for text in spelt:
        config = load_command(None, [], ["--data.columns", text])
        assert config.data.columns == COLUMNS
        assert from_toml(to_toml(config)) == config
    path = str(write({"Question": "q", "Answer": "a"}))
    data = DataConfig(sets=(path,), columns=COLUMNS)
    assert load_items(data, 0)[0].question == "q"
    assert deal_rows({"a": [{"Question": f"q{k}", "Answer": "a"} for k in range(10)]}, data, config.partition, 0)
    check_file(path)
    for text, said in {
        "prompt": "data.columns: prompt is not a map; write it as a=b,c=d",
        "{prompt": "data.columns: {prompt is not a map",
        "prompt=\udce9,completion=b": "data.columns: 'prompt=\\udce9,completion=b' is not UTF-8, and no config could",
        "prompts=x": "no format has a 'prompts'; rows are read from prompt, completion",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(said)):
            load_config(None, {"data.columns": text})
    with pytest.raises(ConfigError, match=r"data\.sets: .*udce9.csv.* is not UTF-8, .*; rename the file or folder"):
        load_command(None, [], ["--data", "b\udce9.csv", "a.csv"])


def test_a_mapped_label_is_a_field_under_its_own_name_too() -> None:
    rows = [{"Text": "a", "Intent": "x"}, {"Text": "b", "Intent": "y"}]
    items = read_held("a", rows, columns={"text": "Text", "label": "Intent"})
    assert (items[1].choices, items[1].fields) == (("x", "y"), {"label": "y", "Intent": "y", "task": "a"})


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "q", "answer": "a"}, "prompt=question,completion=answer"),
        ({"Text": "q", "Label": "a"}, "text=Text,label=Label"),
        ({"Instruction": "q", "Output": "a"}, "prompt=Instruction,completion=Output"),
        ({"id": 1, "dialogue": [USER, BOT]}, "messages=dialogue"),
        ({"instruction": "q", "context": "c", "response": "a"}, "input=context,output=response"),
        ({"question": "q", "context": "c", "answer": "a"}, "instruction=question,input=context,output=answer"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "completion=chosen"),
        ({"my question": "q", "response": "a", "query": "x"}, "prompt=query,completion=response"),
        ({"query, long": "q", "sentence": "s", "the intent": "a", "category": "c"}, "text=sentence,label=category"),
        ({"stem": "q", "options": ["a", "b"], "answer": 0}, "question=stem,choices=options"),
    ],
)
def test_the_columns_that_would_do_can_be_pasted(row: dict[str, Any], columns: str) -> None:
    with pytest.raises(DataError, match=rf"has the keys {', '.join(row)}; give the rows one of: messages;") as caught:
        item_of(row)
    flag = re.findall(r"--data\.columns .*$", str(caught.value))[0]
    assert flag == f"--data.columns {columns}"
    config = load_command(None, [], shlex.split(flag))
    assert read_held("a", [row, row | {"Label": "b", "category": "d"}], columns=config.data.columns)


def test_a_column_called_task_is_the_rows_own() -> None:
    items = read_held("north", [{"prompt": "a", "completion": "b", "task": "sum"}, {"prompt": "a", "completion": "b"}])
    assert [(item.fields["task"], item.source) for item in items] == [("sum", "north"), ("north", "north")]


def test_columns_with_commas_can_be_pasted_too() -> None:
    with pytest.raises(DataError) as caught:
        item_of({" Question ": "a", "ANSWER": "b"})
    flag = shlex.split(re.findall(r"--data\.columns .*$", str(caught.value))[0])
    assert load_command(None, [], flag).data.columns == {"prompt": " Question ", "completion": "ANSWER"}


def chat(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns), **more}


def shared(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **more}


def both(prompt: Any, completion: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def alpaca(**values: Any) -> dict[str, Any]:
    return {"instruction": "Add", "input": "1 + 1", "output": "2"} | values


TOOL, CALL = {"role": "tool", "content": "7"}, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}
IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "what?"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        # messages
        (chat(USER, CALL, TOOL, BOT), "'messages[1].tool_calls' is given; calls of tools are not read; delete the row"),
        (chat(USER, TOOL, BOT), "'messages[1].role' is 'tool'; use one of system, user, assistant; tools are not read"),
        (chat(USER, BOT, tools=[{"type": "function"}]), "field 'tools' is given; calls of tools are not read"),
        (chat({"role": "user", "content": IMAGE}, BOT), "'messages[0].content[0]' is of the type 'image_url'; only"),
        (chat({"role": "user", "content": ["x"]}, BOT), "'messages[0].content[0]' is of the type 'str'; only parts of"),
        (chat(USER, BOT | {"reasoning_content": "hm"}), "'messages[1].reasoning_content' is given; it is not read"),
        (chat(USER, BOT, functions=[{"name": "f"}]), "field 'functions' is given; calls of tools are not read"),
        (chat(USER, BOT, images=["a.png"]), "field 'images' is given; only text is read"),
        (chat(USER, BOT, chat_template_kwargs={"a": 1}), "field 'chat_template_kwargs' is given; the chat template ge"),
        (chat(USER | {"audio": "a.wav"}, BOT), "field 'messages[0].audio' is given; only text is read"),
        (chat(SYSTEM, USER, BOT, system="Other"), "field 'system' is given, and the first message is another system"),
        ({"messages": "[" * 99999}, "field 'messages' is no JSON list (maximum recursion depth"),
        ({"messages": '[{"role": "user", "role": "system"}]'}, "is no JSON list (it has the key 'role' twice)"),
        (chat(USER, BOT | {"weight": 0}, USER, BOT), "'messages[1].weight' is 0; data.assistant_turns says which"),
        (chat({"role": "User", "content": "x"}, BOT), "'messages[0].role' is 'User'; use one of system, user"),
        (chat({"role": "developer", "content": "x"}, BOT), "'messages[0].role' is 'developer'; use one of system"),
        (chat({"role": ["user"], "content": "x"}, BOT), "'messages[0].role' is ['user']; use one of"),
        (chat(SYSTEM | {"content": " "}, USER, BOT), "'messages[0].content' is empty; fill it in"),
        (chat("Hi", "Hello"), "field 'messages[0]' is 'Hi'; it must be {role, content}"),
        ({"messages": "[{'role': 'user'}]"}, "field 'messages' is no JSON list ("),
        ({"prompt": f"[{USER}]", "completion": f"[{BOT}]"}, "field 'prompt' is a list of messages that is no JSON ("),
        ({"prompt": "x", "completion": f"[{BOT}]"}, "field 'completion' is a list of messages that is no JSON ("),
        ({"prompt": "x", "completion": "y", "label": "False"}, "field 'label' is False, which TRL has for a bad compl"),
        ({"messages": {"role": ["user"], "content": []}}, "field 'messages' is {'role': ['user'], 'content': []}"),
        (chat(USER, BOT, USER), "field 'messages' ends with the role 'user'; add the assistant's answer"),
        # ShareGPT
        (shared(HUMAN, {"from": "function_call", "value": "x"}, GPT), "[1].from' is 'function_call'; use one of sys"),
        (shared(HUMAN, {"from": "observation", "value": "x"}, GPT), "'observation'; use one of system, user, assis"),
        (shared(HUMAN, {"from": "bing", "value": "x"}), "'conversations[1].from' is 'bing'; use one of"),
        (shared(HUMAN, {"from": "gpt"}), "field 'conversations[1].value' is missing; the message has 'from'"),
        (shared(HUMAN, {"value": "x"}), "'conversations[1].role' is missing; use one of"),
        (shared(HUMAN), "field 'conversations' ends with the role 'user'; add the assistant's answer"),
        (shared(GPT), "field 'conversations' has one message; put a user message before the assistant's"),
        (shared(HUMAN, GPT, HUMAN), "field 'conversations' ends with the role 'user'"),
        (shared(HUMAN, GPT, tools='[{"name": "f"}]'), "field 'tools' is given"),
        (shared(HUMAN, GPT, image="a.jpg"), "field 'image' is given; only text is read; delete the row, or the key"),
        (shared(HUMAN, GPT | {"train": False}, HUMAN, GPT), "'conversations[1].train' is false; data.assistant_turns"),
        (shared({"from": "system", "value": "A"}, HUMAN, GPT, system="B"), "'system' is given, and the first message"),
        (shared(HUMAN, GPT, system=7), "field 'system' is 7; it must be a string"),
        ({"conversations": []}, "field 'conversations' has no messages; fill it in"),
        ({"conversations": "Hi"}, "field 'conversations' is 'Hi'; it must be a list"),
        # Alpaca
        (alpaca(output=""), "field 'output' is empty; fill it in or delete the row"),
        (alpaca(output=2), "field 'output' is 2; it must be a string"),
        (alpaca(output=None), "field 'output' is null"),
        (alpaca(output=["2"]), "field 'output' is ['2']"),
        (alpaca(instruction="\n"), "field 'instruction' is empty"),
        (alpaca(instruction={"a": 1}), "field 'instruction' is {'a': 1}; it must be a string"),
        (alpaca(input=3), "field 'input' is 3; it must be a string"),
        (alpaca(input=["1"]), "field 'input' is ['1']"),
        (alpaca(tools=[{"name": "f"}]), "field 'tools' is given; calls of tools are not read"),
        (alpaca(history=[["a", "b"]]), "field 'history' has earlier turns; write rows with history as messages"),
        (alpaca(system=["x"]), "field 'system' is ['x']; it must be a string"),
        (alpaca(output="a \udc80"), r"field 'output' has half of a character, \udc80"),
        # prompts and completions
        (both("a", [BOT]), "field 'completion' is a list, and the prompt a text; write both as texts or"),
        (both([USER], "a"), "field 'completion' is a text, and the prompt a list; write both as texts or both as"),
        (both([USER], [USER, BOT]), "field 'completion' does not begin and end with a message of the assistant; put"),
        (both([USER], [BOT, USER]), "field 'completion' does not begin and end with a message of the assistant"),
        (both([USER], [CALL]), "field 'completion[0].tool_calls' is given"),
        (both([USER], [BOT], tools=[{"name": "f"}]), "field 'tools' is given; calls of tools are not read"),
        (both("a", "b", label=False), "'label' is False, which TRL has for a bad completion; keep rows of good"),
        (both(["a", "b"], ["c", "d"]), "field 'prompt' is a list of texts; write one row for each"),
        (both([], [BOT]), "field 'prompt' has no messages; fill it in"),
        (both([USER], []), "field 'completion' has no messages; fill it in"),
        (both("a", 7), "field 'completion' is 7; it must be a string"),
        (both(None, "b"), "field 'prompt' is null; fill it in"),
        (both("a", "\t"), "field 'completion' is empty"),
        (both("a", float("nan")), "field 'completion' is NaN; fill it in"),
        ({"text": "a", "\udc00": "b"}, r"no known format has the keys text, \udc00"),
        # no format
        ({"text": "Once upon a time"}, "text alone has no answer to learn: split it into prompt and completion"),
        ({"chosen": [USER, BOT], "rejected": [USER, BOT]}, "no known format has the keys chosen, rejected"),
        ({"prompt": "a"}, "no known format has the keys prompt; give the rows one of: messages; conversations; prompt"),
        ({}, "no known format has the keys none"),
        ({"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}, "if 'train' or 'test' are the rows, write one of th"),
        ({"1": {"prompt": "a"}, "2": {"prompt": "b"}}, "if its values are the rows, write them as a list; of pand"),
        ({"rows": [{"prompt": "a"}]}, "if the rows are its 'rows', write that list alone, or call it messages"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        item_of(row)
    assert said in str(caught.value)
    assert "client 'a': row 1: " in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([{"Question": "a", "Category": "b"}], {}, ": --data.columns text=Question,label=Category"),
        ([{"Frage": "a", "Antwort": "b"}], {}, "as in --data.columns prompt=COLUMN,completion=COLUMN"),
        ([{"messages": [USER, BOT]}], COLUMNS, "it has messages; data.columns applies to every file of a run: use"),
        ([{"question": "a", "answer": "b"}], COLUMNS, "has no 'Question', from which data.columns reads 'prompt'; "
         "it has question, answer; did you mean 'question'?"),
        ([{"Question": "a", "Answer": "b"}, {"Question": "a"}], COLUMNS, "row 2: field 'Answer' is missing, from "
         "which data.columns reads 'completion'; the row has Question; correct it"),
        ([{"prompt": "a", "completion": "b"}] * 2, COLUMNS, "client 'a': row 1: has no 'Question', from which "
         "data.columns reads 'prompt'; it has prompt, completion; data.columns applies to every file of a run"),
        ([{"Question": "a", "Answer": ""}], COLUMNS, "row 1: field 'Answer' is empty"),
        ([{"talk": [USER, TOOL]}], {"messages": "talk"}, "row 1: field 'talk[1].role' is 'tool'"),
        ([{"Question": "a", "Answer": "b"}], {"prompt": "Question"}, "the keys Question, Answer with --data."),
        ([{"t": "a", "prompt": "b", "completion": "c"}], {"text": "t"}, "no known format; data.columns must name"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(rows: list[dict[str, Any]], columns: dict[str, str], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_held("a", rows, columns=columns)
    assert said in str(caught.value)


def test_a_file_of_labels_in_csv(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "own.csv"
    path.write_text("text,label,site\na,10,x\nb,2,y\n", encoding="utf-8")
    items = read_file(path)
    assert (items[0].choices, items[0].answer, items[0].fields["site"]) == (("2", "10"), 1, "x")
