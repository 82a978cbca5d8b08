"""Your own rows, from a file or from memory, in one of four formats that the first row's keys decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from capfl.config.keys import as_flag
from capfl.data.labels import in_order, refuse_variants
from capfl.data.rows import Row, RowError, held_rows, parse_rows, read_rows, text_of
from capfl.errors import DataError
from capfl.types import Item

Values = Mapping[str, Any]
Messages = tuple[tuple[str, str], ...]
ROLES = ("system", "user", "assistant")
ANSWER = "give the index, the letter or the text of the right option"


def read_file(path: str | Path, labels: Sequence[str] = (), task: str | None = None) -> list[Item]:
    """All items of one JSON Lines file.

    Args:
        labels: options of text-and-label rows, in the order of their letters; empty: those of the file, sorted.
        task: what the items have in their field ``task``; by default the file's name without its suffix.

    Raises:
        DataError: the file is missing, empty or in no known format, or rows are wrong (all are counted).
    """
    return _items(str(path), Path(path).stem if task is None else task, read_rows(Path(path)), labels)


def read_held(client: str, rows: Iterable[Any], labels: Sequence[str] = ()) -> list[Item]:
    """As ``read_file``, of rows in memory. Errors name the client and the number of the row, from 1."""
    place = f"client {client!r}"
    return _items(place, client, held_rows(place, rows), labels)


def _items(place: str, task: str, rows: Sequence[Row], labels: Sequence[str]) -> list[Item]:
    """Scalar keys that the format does not use become fields."""
    first = next((row for row in rows if not row.fault), rows[0])
    kind = _format_of(first)
    if kind is None and not first.fault:
        known = "; ".join(" + ".join(keys) for keys, _ in FORMATS.values())
        found = ", ".join(map(str, first.values)) or "none"
        raise DataError(f"{first.where}: no known format has the keys {found}; give the rows one of: {known}")

    def parse(row: Row) -> Item:
        keys, parser = FORMATS[str(kind)]
        if _format_of(row) != kind:
            problem = f"is not the format of this row, but of {first.where}"
            raise RowError(" + ".join(keys), problem, "use one format a file")
        item = parser(row.values)
        label = item.fields.get("label", "")
        if kind == "label" and labels and label not in labels:
            remedy = f"correct it, or add it, at every site: {as_flag('data.labels', [*labels, label])}"
            raise RowError("label", f"is {label!r}, which is none of data.labels", remedy)
        used = {*keys, *(("answer", "answerKey") if kind == "choice" else ())}
        scalars = {k: str(v) for k, v in row.values.items() if k not in used and isinstance(v, str | int | float)}
        return replace(item, fields={**scalars, **item.fields, "task": task})

    items = parse_rows(place, rows, parse)
    return _with_label_set(place, items, labels) if kind == "label" else items


def _format_of(row: Row) -> str | None:
    return next((kind for kind, (keys, _) in FORMATS.items() if all(key in row.values for key in keys)), None)


# -- multiple choice -----------------------------------------------------------------------------


def choice(values: Values, stem: str = "question", remedy: str = ANSWER) -> Item:
    """A question and its options: a list of texts, or ``{"text": [...], "label": [...]}`` as on the Hub.

    Args:
        stem: the key of the question.
        remedy: what to do about a row without an answer.

    Raises:
        RowError: the row cannot be used.
    """
    question = text_of(values, stem)
    texts: Any = values.get("choices")
    labels: Any = []
    if isinstance(texts, Mapping):
        texts, labels = texts.get("text"), texts.get("label", [])
        differ = isinstance(labels, list) and len(set(map(str, labels))) == len(labels)
        if not differ or (labels and isinstance(texts, list) and len(labels) != len(texts)):
            raise RowError("choices", "has labels that do not match its texts", "give each text a label of its own")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError("choices", f"is {values.get('choices')!r:.60}", "it must be a list of strings")
    choices = tuple(text.strip() for text in texts)
    if len(choices) < 2:
        raise RowError("choices", f"has {len(choices)} options", "give two or more")
    if "" in choices:
        raise RowError("choices", f"has an empty option ({choices.index('') + 1})", "fill it in or delete it")
    if len(set(choices)) != len(choices) and not labels:  # OpenBookQA has such rows; their labels say which is right
        double = next(text for text in choices if choices.count(text) > 1)
        raise RowError("choices", f"has {double!r:.60} twice", "keep it once")
    field = "answerKey" if "answer" not in values and "answerKey" in values else "answer"
    letters = [str(label) for label in labels] or list(ascii_uppercase[: len(choices)])
    answer = _answer(values.get(field), field, choices, letters, remedy)
    return Item(question, choices, answer, fields={"label": ascii_uppercase[answer] if answer < 26 else str(answer)})


def _answer(value: Any, field: str, choices: tuple[str, ...], letters: list[str], remedy: str) -> int:
    """Index of the right option, given as an index from 0, a letter, a label or the option's text."""
    if value is None or value == "":
        raise RowError(field, "holds no answer", remedy)
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value < len(choices):
            return value
        raise RowError(field, f"is {value}", f"an index counts from 0: give 0 to {len(choices) - 1}")
    if not isinstance(value, str):
        raise RowError(field, f"is {value!r:.60}", ANSWER)
    text = value.strip()
    found = {names.index(text) for names in (letters, list(choices)) if text in names}
    if not found:
        raise RowError(field, f"is {text!r:.60}, which is no option", f"give one of {', '.join(letters)}, or its text")
    if len(found) > 1:
        raise RowError(field, f"is {text!r}, the letter of one option and the text of another", "give its index")
    return found.pop()


# -- text and label ------------------------------------------------------------------------------


def _label(values: Values) -> Item:
    label = values["label"]
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)  # class numbers are common and read the same as text
    return Item(text_of(values, "text"), listed=False, fields={"label": text_of({"label": label}, "label")})


def _with_label_set(place: str, items: list[Item], given: Sequence[str]) -> list[Item]:
    counts = Counter(item.fields["label"] for item in items)
    labels = tuple(given) or in_order(counts)
    if len(labels) < 2:
        remedy = "give rows of two or more labels, or all labels that there are as data.labels"
        raise DataError(f"{place}: field 'label' is {labels[0]!r} in every row; {remedy}")
    if not given:
        refuse_variants({label: f"{n} rows of {place}" for label, n in counts.items()})
    return [replace(item, choices=labels, answer=labels.index(item.fields["label"])) for item in items]


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


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Values], Item]]] = {
    "chat": (("messages",), _chat),
    "completion": (("prompt", "completion"), _completion),
    "choice": (("question", "choices"), choice),
    "label": (("text", "label"), _label),
}
"""The keys by which a format is known, in the order in which they are tried, and its parser."""
