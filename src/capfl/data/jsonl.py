"""Your own rows, from a file or from memory, in one of four formats that the first row's keys decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from capfl.config.flags import as_flag
from capfl.data.labels import in_order, refuse_variants
from capfl.data.rows import Row, RowError, held_rows, parse_rows, read_rows, refuse, text_of
from capfl.errors import DataError
from capfl.types import Item

Values = Mapping[str, Any]
Messages = tuple[tuple[str, str], ...]
ROLES = ("system", "user", "assistant")

FORMATS: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "completion": ("prompt", "completion"),
    "choice": ("question", "choices"),
    "label": ("text", "label"),
}
"""Keys by which a format is known, in the order in which they are tried."""


def read_file(path: str | Path, labels: Sequence[str] = ()) -> list[Item]:
    """All items of one JSON Lines file. Their field ``task`` is the file's name without its suffix.

    Args:
        labels: options of text-and-label rows, in the order of their letters; empty: those of the file, sorted.

    Raises:
        DataError: the file is missing, empty or in no known format, or rows are wrong (all are counted).
    """
    path = Path(path)
    rows, faults = read_rows(path)
    return _items(str(path), path.stem, rows, faults, labels)


def read_held(client: str, rows: Iterable[Any], labels: Sequence[str] = ()) -> list[Item]:
    """As ``read_file``, of rows in memory. Errors name the client and the number of the row, from 1.

    Raises:
        DataError: as ``read_file``.
    """
    found, faults = held_rows(client, rows)
    return _items(f"client {client!r}", client, found, faults, labels)


def _items(place: str, task: str, rows: list[Row], faults: list[str], labels: Sequence[str]) -> list[Item]:
    """Scalar keys that the format does not use become fields."""
    if not rows:
        refuse(place, len(faults), faults)  # no row was even JSON
    kind = _sniff(rows[0])
    if kind is None:
        known = "; ".join(" + ".join(keys) for keys in FORMATS.values())
        found = ", ".join(map(str, rows[0].values)) or "none"
        raise DataError(f"{rows[0].where}: no known format has the keys {found}; give the rows one of: {known}")

    def parse(row: Row) -> Item:
        if _sniff(row) != kind:
            keys = " + ".join(FORMATS[kind])
            raise RowError(keys, f"is not the format of this row, but of {rows[0].where}", "use one format a file")
        item = PARSERS[kind](row.values)
        if kind == "label" and labels and item.fields["label"] not in labels:
            label = item.fields["label"]
            remedy = f"correct it, or add it, at every site: {as_flag('data.labels', [*labels, label])}"
            raise RowError("label", f"is {label!r}, which is none of data.labels", remedy)
        return replace(item, fields={**_extra(row.values, kind), **item.fields, "task": task})

    items = parse_rows(place, rows, faults, parse)
    return _with_label_set(place, items, labels) if kind == "label" else items


def _sniff(row: Row) -> str | None:
    return next((kind for kind, keys in FORMATS.items() if all(key in row.values for key in keys)), None)


def _extra(values: Values, kind: str) -> dict[str, str]:
    used = {*FORMATS[kind], *(("answer", "answerKey") if kind == "choice" else ())}
    return {key: str(v) for key, v in values.items() if key not in used and isinstance(v, str | int | float | bool)}


# -- multiple choice -----------------------------------------------------------------------------


def _choice(values: Values) -> Item:
    question = text_of(values, "question")
    raw: Any = values["choices"]
    labels: list[str] = []
    if isinstance(raw, Mapping):
        raw, labels = raw.get("text"), raw.get("label", [])
        if not isinstance(labels, list) or (isinstance(raw, list) and labels and len(labels) != len(raw)):
            raise RowError("choices", "has labels that do not match its texts", "give each text one label")
    if not isinstance(raw, list) or not all(isinstance(text, str) for text in raw):
        raise RowError("choices", f"is {values['choices']!r:.60}", "it must be a list of strings")
    choices = tuple(text.strip() for text in raw)
    if len(choices) < 2:
        raise RowError("choices", f"has {len(choices)} options", "give two or more")
    if "" in choices:
        raise RowError("choices", f"has an empty option ({choices.index('') + 1})", "fill it in or delete it")
    if len(set(choices)) != len(choices):
        double = next(text for text in choices if choices.count(text) > 1)
        raise RowError("choices", f"has {double!r:.60} twice", "keep it once")
    field = "answerKey" if "answer" not in values and "answerKey" in values else "answer"
    answer = _answer(values.get(field), field, choices, labels)
    letter = ascii_uppercase[answer] if answer < 26 else str(answer)
    return Item(question, choices, answer, fields={"label": letter})


def _answer(value: Any, field: str, choices: tuple[str, ...], labels: list[str]) -> int:
    """Index of the right option, given as an index from 0, a letter, a label or the option's text."""
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(choices):
            return value
        raise RowError(field, f"is {value}", f"an index counts from 0: give 0 to {len(choices) - 1}")
    if value is None or value == "":
        raise RowError(field, "holds no answer", "give the index, the letter or the text of the right option")
    if not isinstance(value, str):
        raise RowError(field, f"is {value!r:.60}", "give the index, the letter or the text of the right option")
    text = value.strip()
    letters = [str(label) for label in labels] or list(ascii_uppercase[: len(choices)])
    found = {names.index(text) for names in (letters, list(choices)) if text in names}
    if len(found) == 1:
        return found.pop()
    if found:
        raise RowError(field, f"is {text!r}, the letter of one option and the text of another", "give its index")
    raise RowError(field, f"is {text!r:.60}, which is no option", f"give one of {', '.join(letters)}, or its text")


# -- text and label ------------------------------------------------------------------------------


def _label(values: Values) -> Item:
    label = values["label"]
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)  # class numbers are common and read the same as text
    label = text_of({"label": label}, "label")
    return Item(text_of(values, "text"), listed=False, fields={"label": label})


def _with_label_set(place: str, items: list[Item], given: Sequence[str]) -> list[Item]:
    counts = Counter(item.fields["label"] for item in items)
    labels = tuple(given) or in_order(counts)
    if len(labels) < 2:
        remedy = "give rows of two or more labels, or all labels that there are as data.labels"
        raise DataError(f"{place}: field 'label' is {labels[0]!r} in every row; {remedy}")
    if not given:
        refuse_variants({label: f"{n} rows of {place}" for label, n in counts.items()})
    at = {label: index for index, label in enumerate(labels)}
    return [replace(item, choices=labels, answer=at[item.fields["label"]]) for item in items]


# -- completions and chat ------------------------------------------------------------------------


def _completion(values: Values) -> Item:
    prompt, completion = values["prompt"], values["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        answer = _messages(completion, "completion")
        if len(answer) != 1 or answer[0][0] != "assistant":
            raise RowError("completion", "is not one message of the assistant", "end with one such message")
        return Item("", messages=_messages(prompt, "prompt"), completion=answer[0][1])
    for field in ("prompt", "completion"):
        text_of(values, field)  # both must be strings that are not blank ...
    return Item(prompt, completion=completion)  # ... and are kept as they are: their spaces are tokens


def _chat(values: Values) -> Item:
    messages = _messages(values["messages"], "messages")
    if len(messages) < 2:
        raise RowError("messages", "has one message", "put a user message before the assistant's")
    if messages[-1][0] != "assistant":
        raise RowError("messages", f"ends with the role {messages[-1][0]!r}", "the last must be 'assistant'")
    return Item("", messages=messages[:-1], completion=messages[-1][1])


def _messages(value: Any, field: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise RowError(field, f"is {value!r:.60}", "it must be a list of {role, content}")
    for number, message in enumerate(value, start=1):
        name = f"{field}[{number}]"
        if not isinstance(message, Mapping):
            raise RowError(name, f"is {message!r:.60}", "it must be {role, content}")
        if message.get("role") not in ROLES:
            raise RowError(f"{name}.role", f"is {message.get('role')!r:.60}", f"use one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise RowError(f"{name}.content", "is empty or not a string", "fill it in or delete the row")
    return tuple((message["role"], message["content"]) for message in value)


PARSERS: dict[str, Callable[[Values], Item]] = {
    "chat": _chat,
    "completion": _completion,
    "choice": _choice,
    "label": _label,
}
