"""Data sets by name or path, and the mistakes in their names."""

from __future__ import annotations

import pytest

from capfl.config.schema import DataConfig
from capfl.data import load_items
from capfl.errors import ConfigError, DataError

ROW = {"question": "is it", "passage": "It is.", "answer": True}


def test_helpdesk_is_the_default():
    items = load_items(DataConfig(sites=3, items=20), 0)
    assert len(items) == 60
    assert {item.fields["site"] for item in items} == {"hospital", "bank", "airline"}


def test_sets_follow_each_other(write, tmp_path):
    own = write({"prompt": "a", "completion": "b"})
    write(*[ROW] * 5, name="boolq/train.jsonl")
    items = load_items(DataConfig(sets=(str(own), "boolq"), dir=str(tmp_path)), 0)
    assert [item.fields["task"] for item in items] == ["own"] + ["boolq"] * 5


def test_limit_takes_some_at_random(write):
    path = str(write(*[{"prompt": f"p{k}", "completion": "c"} for k in range(50)]))

    def questions(seed, limit):
        return [item.question for item in load_items(DataConfig(sets=(path,), limit=limit), seed)]

    assert len(questions(0, 10)) == len(set(questions(0, 10))) == 10
    assert questions(0, 10) == questions(0, 10)
    assert questions(0, 10) != questions(1, 10)
    assert questions(0, 10) != [f"p{k}" for k in range(10)]
    assert questions(0, 99) == [f"p{k}" for k in range(50)]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("helpdesk", "helpdesk"), "helpdesk, helpdesk are one task, 'helpdesk'; name it once or rename a file"),
        (("a/x.jsonl", "b/x.jsonl"), "a/x.jsonl, b/x.jsonl are one task, 'x'"),
        (("boolqq",), r"called 'boolqq' \(did you mean 'boolq'\?\); choose from helpdesk, openbookqa"),
        (("zzz",), "called 'zzz'; choose from helpdesk"),
    ],
)
def test_wrong_names(sets, message):
    with pytest.raises(ConfigError, match=message):
        load_items(DataConfig(sets=sets), 0)


def test_all_wrong_names_at_once():
    with pytest.raises(ConfigError) as caught:
        load_items(DataConfig(sets=("zzz", "yyy")), 0)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("path", ["gone.jsonl", "gone.json", "./gone"])
def test_paths_are_told_from_names(path):
    with pytest.raises(DataError, match="no such file"):
        load_items(DataConfig(sets=(path,)), 0)
