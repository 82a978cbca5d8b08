"""Own rows: the four formats, and a helpful error for every way to get them wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capfl.data.formats import read_file
from capfl.errors import DataError
from capfl.types import Item

QA = {"question": "2 + 2?", "choices": ["3", "four", "5"], "answer": 1}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
HUB = {"question": "q", "choices": {"text": ["three", "four"], "label": ["1", "2"]}}
LABELLED = {"label": "B", "task": "own"}


@pytest.mark.parametrize(
    ("row", "item"),
    [
        *[({**QA, "answer": a}, Item("2 + 2?", ("3", "four", "5"), 1, fields=LABELLED)) for a in (1, "B", "four")],
        *[({**HUB, **a}, Item("q", ("three", "four"), 1, fields=LABELLED))
          for a in ({"answer": "2"}, {"answerKey": "2"}, {"answer": "four"})],
        ({"prompt": "The sky is", "completion": " blue. "}, Item("The sky is", completion=" blue. ")),
        ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]},
         Item("", completion="Hello", messages=(("user", "Hi"),), given=1)),
        ({"messages": [{"role": "system", "content": "Be brief"}, *CHAT["messages"]]},
         Item("", completion="Hello", messages=(("system", "Be brief"), ("user", "Hi")))),
        ({**QA, "site": "north", "year": 2020, "ok": True, "tags": ["x"], "none": None},
         Item("2 + 2?", ("3", "four", "5"), 1, fields={**LABELLED, "site": "north", "year": "2020", "ok": "True"})),
    ],
)  # fmt: skip
def test_a_row_of_every_format(write, row, item):
    (read,) = read_file(write(row))
    expected = {"task": "own", **item.fields}
    assert read == replace(item, fields=expected)
    assert read.place.endswith("own.jsonl:1")


def test_text_and_label_share_the_sorted_label_set(write):
    rows = [{"text": "a", "label": "spam"}, {"text": "b", "label": "ham"}, {"text": "c", "label": "spam"}]
    items = read_file(write(*rows))
    assert [item.choices for item in items] == [("ham", "spam")] * 3
    assert [item.answer for item in items] == [1, 0, 1]
    assert not any(item.listed for item in items)
    numbers = read_file(write(*[{"text": "a", "label": k} for k in (10, 2, 1)]))
    assert (numbers[0].choices, numbers[0].answer) == (("1", "2", "10"), 2)  # class numbers sort as numbers


def test_labels_may_be_given_in_the_order_of_their_letters(write):
    path = write({"text": "a", "label": "spam"}, {"text": "b", "label": "spam"})
    first, second = read_file(path, ("spam", "ham", "offer"))
    assert (first.choices, first.answer, second.answer) == (("spam", "ham", "offer"), 0, 0)
    fault = r"own.jsonl:1: field 'label' is 'spam', which is none of data.labels; .*: --data.labels ham,offer,spam"
    with pytest.raises(DataError, match=fault):
        read_file(path, ("ham", "offer"))


@pytest.mark.parametrize("other", ["Billing", "BILLING", "\uff42illing"])
def test_labels_that_are_likely_one_are_named(write, other):
    path = write(*[{"text": "a", "label": label} for label in ("billing", "billing ", other, "refund", "the refund")])
    with pytest.raises(DataError) as caught:
        read_file(path)
    for part in ("'billing' (2 rows of ", f"{other!r} (1 rows of ", "differ in case or spacing only; write them alike"):
        assert part in str(caught.value)
    assert len(read_file(path, ("billing", other, "refund", "the refund"))) == 5


def test_bom_blank_lines_and_line_separators_are_harmless(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + b'{"prompt": "a\xe2\x80\xa8b", "completion": "c"}\r\n\n')
    (item,) = read_file(path)
    assert item.question == "a\u2028b"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**QA, "answer": "six"}, "field 'answer' is 'six', which is no option; give one of A, B, C, or its text"),
        ({**QA, "answer": 3}, "field 'answer' is 3; an index counts from 0: give 0 to 2"),
        ({**QA, "answer": True}, "field 'answer' is true; give the index"),
        ({**QA, "answer": ""}, "field 'answer' holds no answer; give the index"),
        ({"question": "q", "choices": ["a", "b"]}, "field 'answer' holds no answer"),
        ({**QA, "choices": ["B", "A"], "answer": "A"}, "letter of one option and the text of another; give its index"),
        ({**QA, "choices": ["x", "x ", "y"]}, "field 'choices' has 'x' twice; keep it once"),
        ({**QA, "choices": ["x", " "]}, "field 'choices' has an empty option (2)"),
        ({**QA, "choices": ["x"]}, "field 'choices' has 1 options; give two or more"),
        ({**QA, "choices": "xyz"}, "field 'choices' is 'xyz'; it must be a list of strings"),
        ({**QA, "choices": {"text": ["x", "y"], "label": ["A"]}}, "has labels that do not match its texts"),
        ({**QA, "question": " "}, "field 'question' is empty; fill it in or delete the row"),
        ({"text": "a", "label": None}, "field 'label' is null; fill it in"),
        ({"prompt": "a", "completion": ""}, "field 'completion' is empty"),
        ({"prompt": "a", "completion": CHAT["messages"]}, "field 'completion' is a list, and the prompt a text"),
        ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"]}, "begin and end with a message of the assis"),
        ({"messages": CHAT["messages"][:1] * 2}, "ends with the role 'user'; add the assistant's answer"),
        ({"messages": CHAT["messages"][1:]}, "has one message; put a user message before"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "field 'messages[0].role' is 'bot'; use one of system"),
        ({"messages": [{"role": "user", "content": ""}]}, "field 'messages[0].content' is empty"),
        ({"messages": []}, "field 'messages' has no messages"),
        ({"text": "a \ud83d b", "label": "x"}, r"field 'text' has half of a character, \ud83d; write"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, r"field 'messages' has half of a character, \udc00"),
        ({"text": "a", "label": "x"}, "field 'label' is 'x' in every row; give rows of two or more labels"),
        (
            {"foo": 1, "bar": 2},
            "no known format has the keys foo, bar; give the rows one of: messages; conversations; prom",
        ),
    ],
)
def test_a_wrong_row_is_named_with_field_and_remedy(write, row, message):
    path = write("", row)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert f"{path}:2: " in str(caught.value) or "every row" in message
    assert message in str(caught.value)


def test_all_wrong_rows_are_counted_and_each_kind_is_said_once(write):
    path = write('{"question": ', "[1]", QA, *[{**QA, "answer": 9}] * 6, CHAT)
    with pytest.raises(DataError) as caught:
        read_file(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"9 of 10 rows of {path} cannot be used:"
    assert len(lines) == 6
    assert f"{path}:1: is not JSON" in lines[1]
    assert f"{path}:2: is a JSON list; write one JSON object a line" in lines[2]
    assert lines[3].startswith(f"  {path}:4: field 'answer' is 9")
    assert lines[4] == "    and 5 more like it: 5, 6, 7, 8, 9"
    assert lines[5].startswith(f"  {path}:10: ")
    with pytest.raises(DataError, match=r"own.jsonl:2: .*question \+ choices.*of .*own.jsonl:1; use one format a file"):
        read_file(write(QA, CHAT))


def test_files_that_are_no_json_lines(tmp_path, write):
    for content, message in {
        b"": "has no rows; write one JSON object a line",
        b"{\n}\n": "is one JSON object over several lines; write an array, or one object a line$",
        b"[\n{}\n]": r"own\.jsonl: row 1: no known format has the keys none",
        b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}\n': r"own\.jsonl:2: byte 13 is not UTF-8; save",
    }.items():
        path = write()
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_file(path)
    with pytest.raises(DataError, match=r"gone.jsonl: no such file; .* has own.jsonl$"):
        read_file(tmp_path / "gone.jsonl")
    with pytest.raises(
        DataError, match=r"is a folder that `datasets` did not save .*; give its files, each a client: .*own\.jsonl"
    ):
        read_file(tmp_path)
