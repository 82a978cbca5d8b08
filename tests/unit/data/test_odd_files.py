"""Files as other tools write them: read as they are meant, or refused with the place and what to do."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from capfl.config import load_config
from capfl.data.formats import read_file, read_held
from capfl.errors import ConfigError, DataError

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
ROW, PAIR = {"prompt": "p", "completion": "c"}, ("p", "c")
BOM = b"\xef\xbb\xbf"


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns: Any) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = io.BytesIO()
    pq.write_table(pa.table(list(columns.values()), names=[name.strip("_") for name in columns]), made)
    return made.getvalue()


def arrow(kind: str, values: list[Any]) -> Any:
    """A column of bytes or whole numbers that is said to be text or times."""
    pa = pytest.importorskip("pyarrow")
    kinds = {"string": pa.binary(), "timestamp[s]": pa.int64()}
    return pa.array(values, kinds[kind]).view(pa.string() if kind == "string" else pa.timestamp("s"))


READ: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "marks.csv": (BOM * 2 + b"prompt,completion\np,c\n", [PAIR]),
    "marks.jsonl": (BOM * 2 + lines(ROW), [PAIR]),
    "marks.json": (BOM * 2 + b"[" + lines(ROW) + b"]", [PAIR]),
    "mac.jsonl": (lines(ROW, ROW).replace(b"\n", b"\r")[:-1] + b"\n", [PAIR, PAIR]),
    "names.csv": (b"prompt;completion;notes (a, b, c)\np;c;n\np;c;n\n", [PAIR, PAIR]),
    "texts.csv": (b"prompt;completion\na, b;c\na, b;c\n", [("a, b", "c")] * 2),
    "said.csv": (b"sep=|\nprompt|completion\na,b|c,d\n", [("a,b", "c,d")]),
    "blank.csv": (b" ,\nprompt,completion\np,c\n", [PAIR]),
    "union.jsonl": (lines(ROW | {"messages": None}), [PAIR]),
}


@pytest.mark.parametrize("name", READ)
def test_an_odd_file_is_read_as_it_is_meant(name: str, tmp_path: Path) -> None:
    content, wanted = READ[name]
    (tmp_path / name).write_bytes(content)
    assert [(item.question, item.completion) for item in read_file(tmp_path / name)] == wanted


WRONG: dict[str, tuple[bytes | Callable[[], bytes], str]] = {
    # the header of CSV
    "cat.csv": (
        b"prompt,completion\np,c\n\xef\xbb\xbfprompt, completion\n",
        r"cat\.csv:3: is the header again; delete",
    ),
    "title.csv": (b"Export of May\nprompt,completion\np,c\n", r"title\.csv:1: has one cell, and the rows below have 2"),
    "semi.csv": (b"Export; all\nprompt,completion\np,c\nd,e\n", r"semi\.csv:1: has one cell, and the rows below"),
    "nothing.csv": (b" \r\n\r\n ,,\n", "has no rows"),
    # rows of several kinds in one file
    "mixed.jsonl": (
        lines({"prompt": [USER], "completion": [BOT]}, ROW),
        ":2: its fields are texts, and those of .*:1 m",
    ),
    "typo.jsonl": (
        lines(ROW, {"prompt": "p", "Completion": "c"}),
        ":2: field 'completion' is missing; the row has 'pro",
    ),
    "nulls.jsonl": (
        lines({"messages": [USER, BOT]}, {"messages": None}),
        ":2: field 'messages' is null; it must be a l",
    ),
    # what is no text
    "a.jsonl.gz": (gzip.compress(zlib.compress(bytes(range(256)))), "what is compressed in it is no text; unpack it"),
    "b.jsonl": (zlib.compress(bytes(range(256)) * 2), r"b\.jsonl: is no text; unpack it or export its rows"),
    "c.jsonl": (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it"),
    "d.jsonl": (pickle.dumps([ROW], 2), "is a pickle of Python, which capfl never loads"),
    # a value of Parquet
    "latin.parquet": (
        lambda: parquet(prompt=arrow("string", [b"p", b"\xe9"]), completion=["c", "c"]),
        r"row 2: column 'prompt' cannot be read \(UnicodeDecodeError.*; correct it, save text as UTF-8, or leave",
    ),
    "year.parquet": (
        lambda: parquet(prompt=["p"], completion=["c"], at=arrow("timestamp[s]", [10**13])),
        "row 1: column 'at' cannot be read",
    ),
    "same.parquet": (
        lambda: parquet(prompt=["p"], completion=["c"], completion_=["d"]),
        "two columns 'completion'; ren",
    ),
    # columns whose names could mislead
    "mmlu.csv": (
        b"question,A,B,C,D,answer\nq,1,2,3,4,B\n",
        "if A, B, C, D are options, write them as one list 'choices'",
    ),
    "squad.jsonl": (lines({"question": "q", "answers": {"text": ["a"], "answer_start": [1]}}), r"prompt=COLUMN,compl"),
    "orca.jsonl": (
        lines({"system_prompt": "s", "question": "q", "response": "r"}),
        "--data.columns instruction=question,output=response,system=system_prompt",
    ),
    "self.jsonl": (lines({"instruction": "i", "instances": [{"input": "a"}]}), r"as in --data\.columns prompt=COLUMN"),
    "split.json": (
        lines({"columns": ["prompt"], "index": [0], "data": [["p"]]}),
        "object a row, of pandas: frame.to_js",
    ),
    "unseen.jsonl": (
        lines({"text": "a", "label": "x"}, {"text": "b", "label": "x\u200b"}),
        "differ in case or spacing",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_an_odd_file_is_said(name: str, tmp_path: Path) -> None:
    content, said = WRONG[name]
    (tmp_path / name).write_bytes(content() if callable(content) else content)
    with pytest.raises(DataError, match=said):
        read_file(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROW | {"system": "Be brief"}, "'system' is given beside texts; write it into the prompt, or write the row as"),
        (ROW | {"weight": 0}, "'weight' is 0; data.assistant_turns says which answers are trained on"),
        (ROW | {"weight": 0.5}, "'weight' is 0.5; data.assistant_turns"),
        (ROW | {"train": "False"}, "'train' is 'False'; data.assistant_turns"),
        ({"messages": [USER, BOT | {"train": "false"}]}, "'messages[1].train' is 'false'; data.assistant_turns"),
        ({"messages": [USER, {"role": "assistant", "text": "c"}]}, "'messages[1].content' is missing; the message ha"),
        ({"prompt": [USER], "completion": BOT}, "'completion' is {'role': 'assistant', 'content': 'Hello'}; put it in"),
        ({"prompt": None, "completion": [BOT]}, "field 'prompt' is null; fill it in"),
        ({"prompt": "p", "completion": ["c", "d"]}, "field 'completion' is ['c', 'd']; it must be a string"),
        ({"prompt": json.dumps([USER]), "completion": "c"}, "'completion' has no messages in JSON, as the prompt has"),
    ],
)  # fmt: skip
def test_what_would_be_lost_or_read_wrongly_is_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_held("a", [row])
    assert said in str(caught.value)


def test_weights_of_one_and_a_system_message_beside_messages_are_read() -> None:
    rows = [ROW | {"weight": "1.0", "train": True, "system": ""}, ROW | {"weight": None}]
    assert [item.completion for item in read_held("a", rows)] == ["c", "c"]
    (item,) = read_held("a", [{"sys": "Be", "prompt": [USER], "completion": [BOT]}], columns={"system": "sys"})
    assert item.messages == (("system", "Be"), ("user", "Hi"))


def test_two_keys_are_never_read_from_one_column() -> None:
    with pytest.raises(ConfigError, match="prompt and completion are read from the same column 'q'; give each its own"):
        load_config(None, {"data.columns": {"prompt": "q", "completion": "q"}})


def test_a_key_that_occurs_twice_is_found_in_a_long_array(tmp_path: Path) -> None:
    """Its row is named. A file of 40,000 rows took 24 seconds when the rest of the text was copied for each row."""
    rows = lines(*[ROW] * 20000).replace(b"\n", b",\n")
    (tmp_path / "long.json").write_bytes(b"[" + rows + b'{"prompt": "p", "prompt": "q", "completion": "c"}]')
    with pytest.raises(DataError, match="row 20001: it has the key 'prompt' twice"):
        read_file(tmp_path / "long.json")


def test_a_saved_data_set_without_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list([ROW])
    none = data.select([]).flatten_indices()
    datasets.DatasetDict({"train": data, "test": none}).save_to_disk(tmp_path / "both")
    none.save_to_disk(tmp_path / "none")
    assert read_file(tmp_path / "both")[0].completion == "c"
    for name, said in {"both": r"both.test: has no rows; give one", "none": "none: has no rows; give one"}.items():
        with pytest.raises(DataError, match=said):
            read_file(tmp_path / name, split="test")
