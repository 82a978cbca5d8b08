"""Public data sets by name: where they are on the Hub and how their rows become items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from capfl.data.clinc import DOMAIN, INTENTS
from capfl.data.rows import Row, RowError, parse_rows, read_rows, text_of, with_class_names
from capfl.errors import ConfigError, DataError
from capfl.types import Item

Values = Mapping[str, Any]
LABELLED = "use a labelled split (train or validation)"


@dataclass(frozen=True)
class Source:
    """One public data set: its Hub address, its row parser and what its answers look like."""

    hub: str
    config: str | None
    parse: Callable[[Values], Item]
    answers: str  # the answer schema, in words
    skip: Callable[[Values], bool] = lambda values: False  # rows that belong to no task


def _answer(values: Values, field: str) -> str:
    value = values.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError(field, "holds no answer", LABELLED)
    if not isinstance(value, str):
        raise RowError(field, f"is {value!r:.60}", "it must be a string")
    return value.strip()


def _listed(question: str, choices: tuple[str, ...], answer: int) -> Item:
    return Item(question, choices, answer, fields={"label": ascii_uppercase[answer]})


def _keyed(stem: str) -> Callable[[Values], Item]:
    """Parser of rows with ``choices`` = {"text", "label"} and an ``answerKey`` among the labels."""

    def parse(values: Values) -> Item:
        question = text_of(values, stem)
        choices = values.get("choices")
        if not isinstance(choices, Mapping) or not {"text", "label"} <= choices.keys():
            raise RowError("choices", f"is {choices!r:.60}", "it must hold the lists 'text' and 'label'")
        texts, labels = list(choices["text"]), list(choices["label"])
        # The same text twice does occur in OpenBookQA as published; the key still says which one is right.
        if len(texts) < 2 or len(texts) != len(labels) or len(set(labels)) != len(labels):
            problem = f"has {len(texts)} texts and the labels {labels}"
            raise RowError("choices", problem, "give each of two or more texts its own label")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise RowError("choices", "has an empty text", "fill it in or delete the row")
        key = _answer(values, "answerKey")
        if key not in labels:
            raise RowError("answerKey", f"is {key!r}", f"it must be one of {', '.join(map(str, labels))}")
        return _listed(question, tuple(text.strip() for text in texts), labels.index(key))

    return parse


def _boolq(values: Values) -> Item:
    passage, question = text_of(values, "passage"), text_of(values, "question")
    answer = values.get("answer")
    if answer is None:
        raise RowError("answer", "holds no answer", LABELLED)
    if not isinstance(answer, bool):
        raise RowError("answer", f"is {answer!r:.60}", "it must be true or false, without quotes")
    mark = "" if question.endswith("?") else "?"
    return _listed(f"{passage}\n{question}{mark}", ("yes", "no"), 0 if answer else 1)


def _winogrande(values: Values) -> Item:
    sentence = text_of(values, "sentence")
    if sentence.count("_") != 1:
        raise RowError("sentence", f"has {sentence.count('_')} gaps", "it must have one gap, written _")
    choices = (text_of(values, "option1"), text_of(values, "option2"))
    answer = _answer(values, "answer")
    if answer not in ("1", "2"):
        raise RowError("answer", f"is {answer!r}", 'it must be "1" or "2"')
    return _listed(sentence, choices, int(answer) - 1)


def _yes_no(values: Values) -> Item:
    question = text_of(values, "question")
    answer = _answer(values, "answer")
    if answer not in ("yes", "no"):
        raise RowError("answer", f"is {answer!r}", 'it must be "yes" or "no"')
    return _listed(question, ("yes", "no"), 0 if answer == "yes" else 1)


def _clinc(values: Values) -> Item:
    text, intent = text_of(values, "text"), _answer(values, "intent")
    if intent not in DOMAIN:
        raise RowError("intent", f"is {intent!r}", "it must be one of the 150 intents of CLINC150")
    domain = DOMAIN[intent]
    if values.get("domain", domain) != domain:
        raise RowError("domain", f"is {values['domain']!r}", f"the domain of {intent} is {domain!r}")
    choices = INTENTS[domain]
    fields = {"label": intent, "intent": intent, "domain": domain}
    return Item(text, choices, choices.index(intent), listed=False, fields=fields)


_KEY = "answerKey: one of choices.label"
DATASETS: dict[str, Source] = {
    "openbookqa": Source("allenai/openbookqa", "main", _keyed("question_stem"), _KEY),
    "arc_easy": Source("allenai/ai2_arc", "ARC-Easy", _keyed("question"), _KEY),
    "arc_challenge": Source("allenai/ai2_arc", "ARC-Challenge", _keyed("question"), _KEY),
    "boolq": Source("google/boolq", None, _boolq, "answer: true or false"),
    "winogrande": Source("allenai/winogrande", "winogrande_l", _winogrande, 'answer: "1" or "2"'),
    "commonsense_qa": Source("tau/commonsense_qa", None, _keyed("question"), _KEY),
    "commonsense_qa_2": Source("tasksource/commonsense_qa_2.0", None, _yes_no, 'answer: "yes" or "no"'),
    "clinc150": Source(
        "clinc/clinc_oos",
        "small",
        _clinc,
        "intent: one of the 15 intents of its domain; rows of the intent oos are left out",
        skip=lambda values: values.get("intent") == "oos",
    ),
}


def load(name: str, split: str, dir: str | None = None) -> list[Item]:
    """All items of one split, from ``dir/NAME/SPLIT.jsonl`` or, without ``dir``, from the Hub.

    Raises:
        ConfigError: the name is not in ``DATASETS``.
        DataError: the file or the Hub's data set cannot be read, or rows are wrong (all are counted).
    """
    if name not in DATASETS:
        raise ConfigError(f"data.sets: no data set is called {name!r}; choose from {', '.join(DATASETS)}")
    source = DATASETS[name]
    faults: list[str] = []
    if dir is None:
        place, rows = _place(source, split), _hub_rows(name, source, split)
    else:
        path = _path(Path(dir), name, split)
        place, (rows, faults) = str(path), read_rows(path)

    def parse(row: Row) -> Item:
        item = source.parse(row.values)
        return Item(item.question, item.choices, item.answer, "", item.listed, {"task": name, **item.fields})

    items = parse_rows(place, [row for row in rows if not source.skip(row.values)], faults, parse)
    if not items:
        raise DataError(f"{place}: has no usable rows; {LABELLED}")
    return items


def _path(folder: Path, name: str, split: str) -> Path:
    path = folder / name / f"{split}.jsonl"
    if path.is_file():
        return path
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give --data-dir FOLDER with {name}/{split}.jsonl in it")
    near = (folder / name).glob("*.jsonl") if (folder / name).is_dir() else folder.glob("*/*.jsonl")
    found = sorted(file.relative_to(folder).as_posix() for file in near)
    there = ", ".join(found) or "no NAME/SPLIT.jsonl at all"
    raise DataError(f"{path}: no such file; {folder} holds {there}; choose one of these or add the file")


def _place(source: Source, split: str) -> str:
    return " ".join(filter(None, (source.hub, source.config, split)))


def _hub_rows(name: str, source: Source, split: str) -> list[Row]:
    """Rows of a Hub data set, with the names of classes in place of their numbers."""
    place = _place(source, split)
    try:
        import datasets  # here: it takes seconds, and offline runs never need it

        table = datasets.load_dataset(source.hub, source.config, split=split)
    except Exception as error:  # HTTP clients, caches and builders below raise types of their own
        raise DataError(
            f"{place}: cannot be loaded from the Hub ({type(error).__name__}: {str(error).strip()[:300]}); check the "
            f"network and data.split, or give --data-dir FOLDER with {name}/{split}.jsonl in it, or try capfl on its "
            "built-in data: --data helpdesk"
        ) from error
    classes = {field: kind for field, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    return [
        Row(f"{place}: row {number}", with_class_names(values, classes)) for number, values in enumerate(table, start=1)
    ]
