"""Raw rows of a data set, and the one report of all that are wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from capfl.errors import DataError, counted

T = TypeVar("T")


class RowError(Exception):
    """One row cannot be used: which field, what is wrong, what to do."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"field {field!r} {problem}; {remedy}")
        self.field, self.problem, self.remedy = field, problem, remedy


@dataclass(frozen=True, slots=True)
class Row:
    """One row, the place that error messages name, such as ``data.jsonl:12``, and why it could not be read, if so."""

    where: str
    values: Mapping[str, Any]
    fault: str = ""


def held_rows(place: str, rows: Iterable[Any]) -> list[Row]:
    """Rows that are in memory: dicts, or a ``datasets.Dataset``, whose class numbers become names.

    Raises:
        DataError: there are no rows.
    """
    features = getattr(rows, "features", None) or {}
    classes = {name: kind.int2str for name, kind in features.items() if hasattr(kind, "int2str")}
    found: list[Row] = []
    for number, values in enumerate(rows, start=1):
        where = f"{place}: row {number}"
        if not isinstance(values, Mapping):
            found.append(Row(where, {}, f"is a {type(values).__name__}; give one dict a row"))
            continue
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
        for key, name_of in classes.items():
            hidden = plain[key] is None or plain[key] < 0  # as in the test splits of the Hub
            plain[key] = "" if hidden else name_of(plain[key])
        found.append(Row(where, plain))
    if not found:
        raise DataError(f"{place}: has no rows; give one dict a row")
    return found


def parse_rows(place: str, rows: Sequence[Row], parse: Callable[[Row], T]) -> list[T]:
    """Apply ``parse`` to all rows.

    Raises:
        DataError: some rows could not be read, or were refused with a ``RowError``. Counts them; the same fault of
            several rows is shown once.
    """
    parsed: list[T] = []
    faults: list[tuple[str, str]] = []
    for row in rows:
        try:
            if row.fault:
                faults.append((row.where, row.fault))
                continue
            _refuse_broken_text(row.values)
            parsed.append(parse(row))
        except RowError as error:
            faults.append((row.where, str(error)))
    if faults:
        raise DataError("\n".join([f"{len(faults)} of {len(rows)} rows of {place} cannot be used:", *counted(faults)]))
    return parsed


def _refuse_broken_text(values: Mapping[str, Any]) -> None:
    """Half of a surrogate pair, such as "\\ud83d" alone, is valid JSON, and no text that a tokenizer takes.

    Raises:
        RowError: names the field.
    """
    for field, value in values.items():
        try:
            json.dumps([field, value], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = f"has half of a character, \\u{ord(error.object[error.start]):x}"
            raise RowError(field, half, "write the whole character or delete the row") from error


def text_of(values: Mapping[str, Any], field: str) -> str:
    """A field that must be text and not blank.

    Raises:
        RowError: the field is missing, no string, or blank.
    """
    if field not in values:
        raise RowError(field, "is missing", f"the row has {', '.join(map(repr, values)) or 'no fields'}")
    value = values[field]
    if not isinstance(value, str):
        raise RowError(field, f"is {value!r:.60}", "it must be a string")
    if not value.strip():
        raise RowError(field, "is empty", "fill it in or delete the row")
    return value.strip()
