"""Public data sets: every parser, both ways to read them, and what goes wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from capfl.data import sources
from capfl.data.sources import DATASETS, DOMAIN, INTENTS, load
from capfl.errors import DataError

ABCD = {"text": ["w", "x", "y", "z"], "label": ["A", "B", "C", "D"]}
ROWS = {
    "openbookqa": {"question_stem": "q", "choices": ABCD, "answerKey": "C"},
    "arc_easy": {"question": "q", "choices": {"text": ["w", "x", "y"], "label": ["1", "2", "3"]}, "answerKey": "3"},
    "arc_challenge": {"question": "q", "choices": ABCD, "answerKey": "A"},
    "boolq": {"question": "is it so", "passage": "It is.", "answer": False},
    "winogrande": {"sentence": "Ann told Eve that _ won.", "option1": "Ann", "option2": "Eve", "answer": "2"},
    "commonsense_qa": {"question": "q", "question_concept": "c", "choices": ABCD, "answerKey": "D"},
    "commonsense_qa_2": {"question": "q", "answer": "no"},
    "clinc150": {"text": "what time is it", "intent": "time"},
}


def _load(write, name, *rows):
    path = write(*rows, name=f"{name}/train.jsonl")
    return load(name, "train", str(path.parent.parent))


@pytest.mark.parametrize(
    ("name", "question", "choices", "answer", "label"),
    [
        ("openbookqa", "q", ("w", "x", "y", "z"), 2, "C"),
        ("arc_easy", "q", ("w", "x", "y"), 2, "C"),
        ("arc_challenge", "q", ("w", "x", "y", "z"), 0, "A"),
        ("boolq", "It is.\nis it so?", ("yes", "no"), 1, "B"),
        ("winogrande", "Ann told Eve that _ won.", ("Ann", "Eve"), 1, "B"),
        ("commonsense_qa", "q", ("w", "x", "y", "z"), 3, "D"),
        ("commonsense_qa_2", "q", ("yes", "no"), 1, "B"),
    ],
)
def test_multiple_choice_rows(write, name, question, choices, answer, label):
    (item,) = _load(write, name, ROWS[name])
    assert (item.question, item.choices, item.answer, item.listed) == (question, choices, answer, True)
    assert item.fields == {"task": name, "label": label}


def test_clinc_rows_choose_among_the_fifteen_intents_of_their_domain(write):
    rows = ROWS["clinc150"], ROWS["clinc150"] | {"domain": "utility"}, {"text": "hm", "intent": "oos"}
    items = _load(write, "clinc150", *rows)
    assert len(items) == 2
    for item in items:
        assert (item.choices, item.choices[item.answer], item.listed) == (INTENTS["utility"], "time", False)
        assert item.fields == {"task": "clinc150", "label": "time", "intent": "time", "domain": "utility"}
    assert [len(intents) for intents in INTENTS.values()] == [15] * 10
    assert len(DOMAIN) == 150


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("openbookqa", {"answerKey": ""}, "field 'answerKey' holds no answer; use a labelled split"),
        ("openbookqa", {"answerKey": "E"}, "field 'answerKey' is 'E', which is no option; give one of A, B, C, D, or"),
        ("arc_easy", {"answerKey": "C"}, "field 'answerKey' is 'C', which is no option; give one of 1, 2, 3"),
        (
            "arc_easy",
            {"choices": {"text": ["w", "x"], "label": ["A", "A"]}},
            "field 'choices' has labels that do not match",
        ),
        ("boolq", {"answer": None}, "field 'answer' holds no answer; use a labelled split"),
        ("boolq", {"answer": "true"}, "field 'answer' is 'true'; it must be one of true, false"),
        ("boolq", {"passage": ""}, "field 'passage' is empty"),
        ("winogrande", {"answer": ["1"]}, "field 'answer' is ['1']; it must be one of \"1\", \"2\""),
        ("winogrande", {"sentence": "No gap."}, "field 'sentence' has 0 gaps"),
        ("commonsense_qa_2", {"answer": "maybe"}, "field 'answer' is 'maybe'"),
        ("commonsense_qa_2", {"question": 3}, "field 'question' is 3; it must be a string"),
        ("clinc150", {"intent": "dance"}, "field 'intent' is 'dance'; it must be one of the 150 intents"),
        ("clinc150", {"intent": ""}, "field 'intent' holds no answer; use a labelled split"),
        ("clinc150", {"domain": "travel"}, "field 'domain' is 'travel'; the domain of time is 'utility'"),
    ],
)
def test_wrong_rows(write, name, change, message):
    with pytest.raises(DataError) as caught:
        _load(write, name, ROWS[name], {**ROWS[name], **change})
    assert f"train.jsonl:2: {message}" in str(caught.value)


def test_a_text_may_come_twice_where_labels_say_which_is_right(write):
    (item,) = _load(
        write, "openbookqa", {**ROWS["openbookqa"], "choices": {"text": list("wxwz"), "label": list("ABCD")}}
    )
    assert (item.choices, item.answer) == (("w", "x", "w", "z"), 2)


def test_missing_columns_files_and_rows(write, tmp_path):
    with pytest.raises(
        DataError, match="field 'question_stem' is missing; add it or delete the row; it has 'question'"
    ):
        _load(write, "openbookqa", {"question": "q"})
    with pytest.raises(DataError, match=r"holds openbookqa/train\.jsonl; choose"):
        load("openbookqa", "test", str(tmp_path))
    write(ROWS["arc_easy"], name="arc_easy/train.jsonl")
    with pytest.raises(DataError, match=r"holds arc_easy/train\.jsonl, openbookqa/train\.jsonl; choose"):
        load("winogrande", "train", str(tmp_path))
    with pytest.raises(DataError, match=r"no such folder; give --data-dir FOLDER with boolq/train.jsonl"):
        load("boolq", "train", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="has no usable rows"):
        _load(write, "clinc150", {"text": "hm", "intent": "oos"})


# -- the Hub's path, on a local folder --------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Point one source at a folder that ``load_dataset`` can read."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def _hub(name, rows, features=None):
        folder = tmp_path / "hub" / name
        folder.mkdir(parents=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
        monkeypatch.setitem(sources.DATASETS, name, replace(DATASETS[name], hub=str(folder), config=None))

    return _hub


def test_the_hub_and_its_errors(hub):
    hub("openbookqa", [ROWS["openbookqa"], {**ROWS["openbookqa"], "answerKey": ""}])
    with pytest.raises(DataError, match=r"1 of 2 rows[\s\S]*train: row 2: field 'answerKey' holds no answer"):
        load("openbookqa", "train")
    with pytest.raises(DataError, match=r"network and data\.split, or give --data-dir FOLDER with openbookqa/test"):
        load("openbookqa", "test")
    datasets = pytest.importorskip("datasets")
    intent = datasets.ClassLabel(names=["time", "oos", "weather"])
    features = datasets.Features({"text": datasets.Value("string"), "intent": intent})
    hub("clinc150", [{"text": "a", "intent": 2}, {"text": "b", "intent": 1}], features)
    (item,) = load("clinc150", "train")
    assert item.fields["intent"] == "weather"  # class numbers become names


# -- real rows, where there are any ------------------------------------------------------------------

REAL = Path(os.environ.get("CAPFL_DATA_DIR", Path(__file__).parents[4] / "shared" / "data"))


@pytest.mark.parametrize("name", DATASETS)
def test_real_rows(name):
    if not (REAL / name / "validation.jsonl").is_file():
        pytest.skip(f"no real rows of {name}: set CAPFL_DATA_DIR to a folder of NAME/SPLIT.jsonl")
    for item in load(name, "validation", str(REAL)):
        assert {"task", "label"} <= item.fields.keys()
        assert 0 <= item.answer < len(item.choices)
