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


def test_a_label_has_one_letter_wherever_its_letter_is_learnt(write):
    """The second file lacks a label of the first, so its letters would be others."""
    north = str(
        write(*[{"text": "t", "label": label} for label in ("billing", "delivery", "refund")], name="north.jsonl")
    )
    south = str(write(*[{"text": "t", "label": label} for label in ("delivery", "refund")], name="south.jsonl"))
    both = DataConfig(sets=(north, south))
    fault = "label 'delivery' is option 2 in .*north.jsonl and 1 in .*south.jsonl.*data.labels=billing,delivery,refund"
    with pytest.raises(DataError, match=fault):
        load_items(both, 0)
    whole = both.model_copy(update={"labels": ("billing", "delivery", "refund")})
    assert {item.choices.index(item.fields["label"]) for item in load_items(whole, 0)[3:]} == {1, 2}
    text = load_items(both.model_copy(update={"scoring": "text"}), 0)
    assert text[3].choices == ("delivery", "refund")  # a label's words are the same everywhere
    others = str(write(*[{"text": "t", "label": label} for label in ("no", "yes")], name="others.jsonl"))
    assert len(load_items(DataConfig(sets=(north, others)), 0)) == 5  # another task
    with pytest.raises(ValueError, match="labels a, a are not two or more different ones"):
        DataConfig(labels=("a", "a"))
