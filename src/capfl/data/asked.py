"""Rows that ask for an answer: as the rows that train, with or without the answer at their end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from capfl.data.formats import FORMATS
from capfl.data.rows import Row, RowError, held_rows, parse_rows
from capfl.types import Item

_STAND_IN = "?"  # for an answer that is still to come; nobody reads it


def read_asked(place: str, rows: Sequence[Row]) -> list[Item]:
    """What rows ask: a ``prompt``, which is text or a list of messages, or ``messages``.

    They are read as in training. An answer at the end, be it a completion or a last message of the assistant, is the
    item's completion and no part of what is asked.

    Raises:
        DataError: rows that cannot be used. Counts them, and lists the first.
    """
    return parse_rows(place, rows, _asked)


def held_asked(rows: Iterable[str | Mapping[str, Any]]) -> list[Item]:
    """As ``read_asked``, of rows in memory; a text is a prompt."""
    given = [{"prompt": row} if isinstance(row, str) else row for row in rows]
    return read_asked("the prompts", held_rows("the prompts", given)) if given else []


def _asked(row: Row) -> Item:
    values = _answered(row.values)
    fitting = (parse for keys, parse in FORMATS.values() if all(key in values for key in keys))
    parse = next(fitting, None)
    if parse is None:
        found = ", ".join(map(repr, row.values)) or "no fields"
        raise RowError("prompt", "is missing", f"give a prompt, or messages; the row has {found}")
    item = parse(values)
    if not item.completion:
        raise RowError("prompt", "is missing", "a row with labels or options is for `capfl eval` and `predict`")
    return item


def _answered(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with a stand-in for the answer that it does not have."""
    turn = {"role": "assistant", "content": _STAND_IN}
    messages = values.get("messages")
    if isinstance(messages, list) and messages and not _is_answer(messages[-1]):
        return {**values, "messages": [*messages, turn]}
    if "prompt" in values and "completion" not in values:
        return {**values, "completion": [turn] if isinstance(values["prompt"], list) else _STAND_IN}
    return values


def _is_answer(message: object) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"
