"""Own files: the four formats, and a helpful error for every way to get them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfl.data.jsonl import read_file
from capfl.errors import DataError
from capfl.types import Item

QA = {"question": "2 + 2?", "choices": ["3", "four", "5"], "answer": 1}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.mark.parametrize("answer", [1, "B", "four"])
def test_choice_answers_by_index_letter_or_text(write, answer):
    (item,) = read_file(write({**QA, "answer": answer}))
    assert item == Item("2 + 2?", ("3", "four", "5"), 1, fields={"label": "B", "task": "own"})


@pytest.mark.parametrize(("key", "answer"), [("answer", "2"), ("answerKey", "2"), ("answer", "four")])
def test_choice_in_hub_form(write, key, answer):
    row = {"question": "q", "choices": {"text": ["three", "four"], "label": ["1", "2"]}, key: answer}
    (item,) = read_file(write(row))
    assert (item.choices, item.answer, item.fields["label"]) == (("three", "four"), 1, "B")


def test_text_and_label_share_the_sorted_label_set(write):
    rows = [{"text": "a", "label": "spam"}, {"text": "b", "label": "ham"}, {"text": "c", "label": "spam"}]
    items = read_file(write(*rows))
    assert [item.choices for item in items] == [("ham", "spam")] * 3
    assert [item.answer for item in items] == [1, 0, 1]
    assert not any(item.listed for item in items)
    assert items[0].fields == {"label": "spam", "task": "own"}


def test_prompt_and_completion_keep_their_spaces(write):
    (item,) = read_file(write({"prompt": "The sky is", "completion": " blue. "}))
    assert (item.question, item.completion, item.choices, item.messages) == ("The sky is", " blue. ", (), ())


def test_conversational_prompt_and_completion(write):
    row = {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}
    (item,) = read_file(write(row))
    assert (item.messages, item.completion, item.question) == ((("user", "Hi"),), "Hello", "")


def test_chat_ends_with_the_completion(write):
    row = {"messages": [{"role": "system", "content": "Be brief"}, *CHAT["messages"]]}
    (item,) = read_file(write(row))
    assert item.messages == (("system", "Be brief"), ("user", "Hi"))
    assert item.completion == "Hello"


def test_scalar_keys_become_fields_and_the_rest_is_dropped(write):
    (item,) = read_file(write({**QA, "site": "north", "year": 2020, "ok": True, "tags": ["x"], "none": None}))
    assert item.fields == {"site": "north", "year": "2020", "ok": "True", "label": "B", "task": "own"}


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
        ({**QA, "answer": True}, "field 'answer' is True; give the index"),
        ({**QA, "answer": ""}, "field 'answer' holds no answer; give the index"),
        ({"question": "q", "choices": ["a", "b"]}, "field 'answer' holds no answer"),
        ({**QA, "choices": ["B", "A"], "answer": "A"}, "letter of one option and the text of another; give its index"),
        ({**QA, "choices": ["x", "x ", "y"]}, "field 'choices' has 'x' twice; keep it once"),
        ({**QA, "choices": ["x", " "]}, "field 'choices' has an empty option (2)"),
        ({**QA, "choices": ["x"]}, "field 'choices' has 1 options; give two or more"),
        ({**QA, "choices": "xyz"}, "field 'choices' is 'xyz'; it must be a list of strings"),
        ({**QA, "choices": {"text": ["x", "y"], "label": ["A"]}}, "has labels that do not match its texts"),
        ({**QA, "question": " "}, "field 'question' is empty; fill it in or delete the row"),
        ({"text": "a", "label": None}, "field 'label' is None; it must be a string"),
        ({"prompt": "a", "completion": ""}, "field 'completion' is empty"),
        ({"prompt": "a", "completion": CHAT["messages"]}, "field 'completion' is [{"),
        ({"prompt": CHAT["messages"][:1], "completion": CHAT["messages"]}, "is not one message of the assistant"),
        ({"messages": CHAT["messages"][:1] * 2}, "ends with the role 'user'; the last must be 'assistant'"),
        ({"messages": CHAT["messages"][1:]}, "has one message; put a user message before"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "field 'messages[1].role' is 'bot'; use one of system"),
        ({"messages": [{"role": "user", "content": ""}]}, "field 'messages[1].content' is empty"),
        ({"messages": []}, "field 'messages' is []; it must be a list"),
    ],
)
def test_a_wrong_row_is_named_with_field_and_remedy(write, row, message):
    path = write("", row)
    with pytest.raises(DataError) as caught:
        read_file(path)
    assert f"{path}:2: " in str(caught.value)
    assert message in str(caught.value)


def test_all_wrong_rows_are_counted_and_five_listed(write):
    path = write(QA, *[{**QA, "answer": 9}] * 6, '{"question": ', "[1]")
    with pytest.raises(DataError) as caught:
        read_file(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"8 of 9 rows of {path} cannot be used:"
    assert len(lines) == 7
    assert lines[-1] == "  ... and 3 more"
    assert f"{path}:8: is not JSON" in lines[1]
    assert f"{path}:9: is a JSON list; write one JSON object a line" in lines[2]


def test_formats_must_not_mix(write):
    path = write(QA, CHAT)
    with pytest.raises(DataError, match=r"own.jsonl:2: .*question \+ choices.*of .*own.jsonl:1; use one format a file"):
        read_file(path)


def test_bad_utf8_names_the_line(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"own\.jsonl:2: byte 13 is not UTF-8; save the file as UTF-8"):
        read_file(path)


def test_a_file_of_broken_lines_only(write):
    with pytest.raises(DataError, match="2 of 2 rows"):
        read_file(write("{", "}"))


def test_one_label_is_no_task(write):
    with pytest.raises(DataError, match="field 'label' is 'x' in every row; give rows of two or more labels"):
        read_file(write({"text": "a", "label": "x"}, {"text": "b", "label": "x"}))


def test_labels_may_be_given_in_the_order_of_their_letters(write):
    path = write({"text": "a", "label": "spam"}, {"text": "b", "label": "spam"})
    first, second = read_file(path, ("spam", "ham", "offer"))
    assert (first.choices, first.answer, second.answer) == (("spam", "ham", "offer"), 0, 0)
    fault = r"own.jsonl:1: field 'label' is 'spam', which is none of data.labels; correct it, or add it to data.labels"
    with pytest.raises(DataError, match=fault):
        read_file(path, ("ham", "offer"))


def test_class_numbers_are_labels(write):
    assert read_file(write({"text": "a", "label": 0}, {"text": "b", "label": 1}))[1].choices == ("0", "1")


def test_unknown_format_lists_keys_and_formats(write):
    with pytest.raises(DataError, match=r"own.jsonl:1: no known format has the keys foo, bar; .*prompt \+ completion"):
        read_file(write({"foo": 1, "bar": 2}))


def test_missing_empty_and_array_files(tmp_path: Path, write):
    with pytest.raises(DataError, match=r"gone.jsonl: no such file; check the path"):
        read_file(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="has no rows; write one JSON object a line"):
        read_file(write("", " "))
    with pytest.raises(DataError, match="is one JSON array; write JSON Lines"):
        read_file(write("[", "{}", "]"))
    with pytest.raises(DataError, match="cannot be read"):
        read_file(tmp_path)
