"""Public data sets by name: where they are on the Hub and how their rows become items."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from capfl.data.files import read_rows
from capfl.data.formats import choice
from capfl.data.rows import Row, RowError, held_rows, parse_rows, shown, text_of
from capfl.errors import DataError
from capfl.types import Item

Values = Mapping[str, Any]
LABELLED = "use a labelled split (train or validation)"
INTENTS: dict[str, tuple[str, ...]] = {
    domain: tuple(intents)
    for domain, intents in tomllib.loads((Path(__file__).parent / "clinc150.toml").read_text(encoding="utf-8")).items()
}
"""The fifteen intents of each of the ten domains of CLINC150, sorted."""
DOMAIN = {intent: domain for domain, intents in INTENTS.items() for intent in intents}


@dataclass(frozen=True)
class Source:
    """One public data set: its address on the Hub, and the parser of its rows, which leaves some out with None."""

    hub: str
    config: str | None
    parse: Callable[[Values], Item | None]


def _one_of(values: Values, field: str, options: Mapping[Any, int]) -> int:
    """What a field's value stands for. Raises RowError: it is none of the options."""
    value = values.get(field)
    if value is None or value == "":
        raise RowError(field, "holds no answer", LABELLED)
    for option, index in options.items():
        if value == option:
            return index
    raise RowError(field, f"is {shown(value)}", f"it must be one of {', '.join(map(json.dumps, options))}")


def _listed(question: str, choices: tuple[str, ...], answer: int) -> Item:
    return Item(question, choices, answer, fields={"label": ascii_uppercase[answer]})


def _boolq(values: Values) -> Item:
    passage, question = text_of(values, "passage"), text_of(values, "question")
    mark = "" if question.endswith("?") else "?"
    answer = _one_of(values, "answer", {True: 0, False: 1})
    return _listed(f"{passage}\n{question}{mark}", ("yes", "no"), answer)


def _winogrande(values: Values) -> Item:
    sentence = text_of(values, "sentence")
    if sentence.count("_") != 1:
        raise RowError("sentence", f"has {sentence.count('_')} gaps", "it must have one gap, written _")
    choices = (text_of(values, "option1"), text_of(values, "option2"))
    return _listed(sentence, choices, _one_of(values, "answer", {"1": 0, "2": 1}))


def _yes_no(values: Values) -> Item:
    return _listed(text_of(values, "question"), ("yes", "no"), _one_of(values, "answer", {"yes": 0, "no": 1}))


def _clinc(values: Values) -> Item | None:
    text, intent = text_of(values, "text"), values.get("intent")
    if intent == "oos":  # out of scope: of no domain
        return None
    if not intent:
        raise RowError("intent", "holds no answer", LABELLED)
    if not isinstance(intent, str) or intent not in DOMAIN:
        raise RowError("intent", f"is {shown(intent)}", "it must be one of the 150 intents of CLINC150")
    domain = DOMAIN[intent]
    if values.get("domain", domain) != domain:
        raise RowError("domain", f"is {values['domain']!r}", f"the domain of {intent} is {domain!r}")
    choices = INTENTS[domain]
    fields = {"label": intent, "intent": intent, "domain": domain}
    return Item(text, choices, choices.index(intent), listed=False, fields=fields)


_choice = partial(choice, remedy=LABELLED)
DATASETS: dict[str, Source] = {
    "openbookqa": Source("allenai/openbookqa", "main", partial(_choice, stem="question_stem")),
    "arc_easy": Source("allenai/ai2_arc", "ARC-Easy", _choice),
    "arc_challenge": Source("allenai/ai2_arc", "ARC-Challenge", _choice),
    "boolq": Source("google/boolq", None, _boolq),
    "winogrande": Source("allenai/winogrande", "winogrande_l", _winogrande),
    "commonsense_qa": Source("tau/commonsense_qa", None, _choice),
    "commonsense_qa_2": Source("tasksource/commonsense_qa_2.0", None, _yes_no),
    "clinc150": Source("clinc/clinc_oos", "small", _clinc),
}


def load(name: str, split: str, dir: str | None = None) -> list[Item]:
    """All items of one split, from ``dir/NAME/SPLIT.jsonl`` or, without ``dir``, from the Hub.

    Args:
        name: one of ``DATASETS``.

    Raises:
        DataError: the file or the Hub's data set cannot be read, or rows are wrong (all are counted).
    """
    source = DATASETS[name]
    if dir is None:
        place = _place(source.hub, source.config, split)
        rows = hub_rows(
            source.hub, source.config, split, f", or give --data-dir FOLDER with {name}/{split}.jsonl in it"
        )
    else:
        path = _path(Path(dir), name, split)
        place, rows = str(path), read_rows(path)

    def parse(row: Row) -> Item | None:
        item = source.parse(row.values)
        return item and replace(item, fields={"task": name, **item.fields}, place=row.where, source=name)

    items = [item for item in parse_rows(place, rows, parse) if item is not None]
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


def hub_rows(hub: str, config: str | None, split: str, remedy: str) -> list[Row]:
    """All rows of one split of a data set on the Hub.

    Args:
        config: its part, where it has several.
        remedy: what else a user can do where it cannot be loaded.

    Raises:
        DataError: it cannot be loaded, or has no rows.
    """
    place = _place(hub, config, split)
    try:
        import datasets  # here: it takes seconds, and offline runs never need it

        table = datasets.load_dataset(hub, config, split=split)
    except Exception as error:  # HTTP clients, caches and builders below raise types of their own
        raise DataError(
            f"{place}: cannot be loaded from the Hub ({type(error).__name__}: {str(error).strip()[:300]}); check the "
            f"name, the network and data.split{remedy}, or try capfl on its built-in data: --data helpdesk"
        ) from error
    return held_rows(place, table)


def _place(hub: str, config: str | None, split: str) -> str:
    return " ".join(filter(None, (hub, config, split)))
