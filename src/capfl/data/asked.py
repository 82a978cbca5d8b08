"""Rows that ask for an answer, a label or an option: as the rows that train, with or without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capfl.data.chats import listed, messages_in, turns
from capfl.data.formats import read_as
from capfl.data.rows import Row, RowError, held_rows
from capfl.errors import DataError
from capfl.types import Item

Columns = Mapping[str, str] | None
Values = Mapping[str, Any]

_STAND_IN = "?"  # for an answer that is still to come; nobody reads it
_SPELLINGS = {"messages": ("role", "content", "assistant"), "conversations": ("from", "value", "gpt")}
_ANSWERS = {"prompt": "completion", "instruction": "output"}
_REMEDY = (
    f"give one of {', '.join([*_SPELLINGS, *_ANSWERS])}, or say with data.columns what they are called; rows with "
    "labels or options are for `capfl predict` and `capfl eval`"
)
_NO_LABELS = "give question and choices with --data, or let it write, with `capfl generate`"
_CHOICES = (
    "give text, or question and choices, or say with data.columns what they are called; rows with a prompt or messages "
    "are for `capfl generate`"
)


def read_asked(place: str, rows: Sequence[Row], columns: Columns) -> list[Item]:
    """What rows ask: all that rows of text train on (docs/data.md), up to the answer.

    An answer at the end, be it a completion or a last message of the assistant, may be missing. If it is there it is
    the item's completion, and no part of what is asked.

    Args:
        columns: as ``data.columns``.

    Raises:
        DataError: rows that cannot be used. Counts them, and lists the first.
    """
    return read_as(place, "", [_answered(row, columns or {}) for row in rows], (), columns, mixed=True)


def held_asked(rows: Iterable[str | Values], columns: Columns = None) -> list[Item]:
    """As ``read_asked``, of rows in memory; a text is a prompt."""
    given = _rows(rows, (columns or {}).get("prompt", "prompt"))
    return read_asked("the prompts", held_rows("the prompts", given), columns) if given else []


def read_choices(place: str, rows: Sequence[Row], labels: Sequence[str], columns: Columns = None) -> list[Item]:
    """Texts that ask for a label, or questions with options. A label or right option that they have is not looked at.

    Args:
        labels: of texts, in the order of their letters.
        columns: as ``data.columns``.

    Raises:
        DataError: rows that cannot be used, or texts where there are no labels.
    """
    asked = [_to_choose(row, labels, columns or {}) for row in rows]
    return read_as(place, "", asked, labels, columns) if asked else []


def held_choices(rows: Iterable[str | Values], labels: Sequence[str], columns: Columns = None) -> list[Item]:
    """As ``read_choices``, of rows in memory; a text is one that asks for a label."""
    given = _rows(rows, (columns or {}).get("text", "text"))
    return read_choices("the rows", held_rows("the rows", given), labels, columns) if given else []


def _rows(rows: Iterable[str | Values], own: str) -> list[Any]:
    """Rows in memory, texts as rows with one field. Raises DataError: one row alone is given, in no list."""
    if isinstance(rows, str | Mapping):
        raise DataError(f"{rows!r:.60} is one row; give a list of rows, such as [{rows!r:.60}]")
    return [{own: row} if isinstance(row, str) else row for row in rows]


def _to_choose(row: Row, labels: Sequence[str], columns: Mapping[str, str]) -> Row:
    """The row with a stand-in for its label or right option."""
    text, label, question, choices, answer = (
        columns.get(key, key) for key in ("text", "label", "question", "choices", "answer")
    )
    if row.fault:
        return row
    if question in row.values and choices in row.values:
        return Row(row.where, {**row.values, answer: 0})
    if text not in row.values:
        found = ", ".join(map(repr, row.values)) or "no fields"
        return Row(row.where, row.values, f"asks for no choice, it has {found}; {_CHOICES}")
    if not labels:
        return Row(row.where, row.values, f"the adapter has no labels to choose from; {_NO_LABELS}")
    return Row(row.where, {**row.values, label: labels[0]})


def _answered(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with a stand-in for the answer that it does not have."""
    values = dict(row.values)
    names = {key: columns.get(key, key) for key in (*_SPELLINGS, *_ANSWERS, *_ANSWERS.values())}
    asks = next((key for key in (*_SPELLINGS, *_ANSWERS) if names[key] in values), None)
    if row.fault:
        return row
    if asks is None:
        found = ", ".join(map(repr, values)) or "no fields"
        return Row(row.where, row.values, f"asks nothing, it has {found}; {_REMEDY}")
    if asks in _SPELLINGS:
        values[names[asks]] = _with_answer(values[names[asks]], asks)
    elif (answer := names[_ANSWERS[asks]]) not in values:
        try:
            in_cell = messages_in(values[names[asks]], names[asks])
        except RowError:
            in_cell = []  # whoever reads the row says what is wrong
        if in_cell:
            values[names[asks]] = in_cell
        as_chat = isinstance(listed(values[names[asks]]), list)
        values[answer] = [{"role": "assistant", "content": _STAND_IN}] if as_chat else _STAND_IN
    return Row(row.where, values)


def _with_answer(value: Any, field: str) -> Any:
    """Messages that end with the assistant's."""
    who, what, assistant = _SPELLINGS[field]
    try:
        said = turns(value, field)
    except RowError:
        return value  # whoever reads the row says what is wrong
    if said[-1][0] == "assistant":
        return value
    return [*({who: role, what: text} for role, text in said), {who: assistant, what: _STAND_IN}]
