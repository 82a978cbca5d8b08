"""Raw rows of a data set, and the one report of all that are wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def shown(value: Any) -> str:
    """A row's value as an error quotes it, in JSON's words."""
    said = value is None or isinstance(value, bool) or (isinstance(value, float) and math.isnan(value))
    return json.dumps(value) if said else f"{value!r:.60}"


def blank(value: Any) -> bool:
    """Is nothing where a text may be? pandas writes nan there."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


@dataclass(frozen=True, slots=True)
class Row:
    """One row, the place that error messages name, such as ``data.jsonl:12``, and why it could not be read, if so."""

    where: str
    values: Mapping[str, Any]
    fault: str = ""


def held_rows(place: str, rows: Iterable[Any]) -> list[Row]:
    """Rows that are in memory: dicts, or a ``datasets.Dataset``, whose class numbers become names.

    Raises:
        DataError: there are no rows, or what is given is no list of rows.
    """
    if isinstance(rows, Mapping) or hasattr(rows, "iterrows") or not hasattr(rows, "__iter__"):
        remedy = "of pandas: frame.to_dict('records')" if hasattr(rows, "iterrows") else "or one split of a data set"
        raise DataError(f"{place}: is a {type(rows).__name__}; give a list with one dict a row, {remedy}")
    features = getattr(rows, "features", None) or {}
    classes = {name: kind.names for name, kind in features.items() if hasattr(kind, "int2str")}
    found = [_held(f"{place}: row {n}", values, classes) for n, values in enumerate(_stored(rows), start=1)]
    if not found:
        raise DataError(f"{place}: has no rows; give one at least")
    return found


def _stored(rows: Iterable[Any]) -> Iterator[Any]:
    """Rows as a ``datasets.Dataset`` stores them, whatever its format; pictures and sounds are not decoded."""
    kind = (getattr(rows, "format", None) or {}).get("type", "custom")
    if kind == "custom":  # lists, streams, and data with a transform of the user's
        yield from rows
        return
    for batch in rows.with_format("arrow").iter(batch_size=1000):  # type: ignore[attr-defined]
        yield from batch.to_pylist()


def _held(where: str, values: Any, classes: Mapping[str, Sequence[str]]) -> Row:
    if not isinstance(values, Mapping):
        return Row(where, {}, f"is a {type(values).__name__}; give one dict a row")
    if other := [key for key in values if not isinstance(key, str)]:
        return Row(where, {}, f"has the key {other[0]!r:.60}, which is no text; rename it")
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    for key, names in classes.items():
        number = plain[key]
        if number is None or number < 0:  # as in the test splits of the Hub
            plain[key] = ""
        elif number < len(names):
            plain[key] = names[number]
        else:
            return Row(where, plain, f"field {key!r} is {number}, and the data set names {len(names)} classes; mend it")
    return Row(where, plain)


def parsed(text: str) -> Any:
    """As ``json.loads``.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has an object with a key twice (``TwiceError``).
    """
    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError(str(error)) from error


class TwiceError(ValueError):
    """An object has a key twice, of which one value would be lost."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of pairs. Raises TwiceError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise TwiceError(f"it has the key {next(name for name in names if names.count(name) > 1)!r} twice")
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
            for text in _texts_in([field, value]):
                text.encode()
        except UnicodeEncodeError as error:
            half = f"has half of a character, \\u{ord(error.object[error.start]):x}"
            raise RowError(field, half, "write the whole character or delete the row") from error


def _texts_in(value: Any) -> Iterator[str]:
    """All texts in lists and objects, however deep, or around in a circle."""
    left, seen = [value], set[int]()
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list | tuple | Mapping) and id(value) not in seen:
            seen.add(id(value))
            left += [*value.keys(), *value.values()] if isinstance(value, Mapping) else value


def text_of(values: Mapping[str, Any], field: str) -> str:
    """A field that must be text and not blank.

    Raises:
        RowError: the field is missing, no string, or blank.
    """
    if field not in values:
        raise RowError(
            field, "is missing", f"add it or delete the row; it has {', '.join(map(repr, values)) or 'no fields'}"
        )
    value = values[field]
    check_text(value, field)
    return str(value.strip())


def check_text(value: Any, field: str) -> None:
    """Raises RowError: a value is no string, or blank."""
    if blank(value):
        problem = "is empty" if isinstance(value, str) else f"is {shown(value)}"
        raise RowError(field, problem, "fill it in or delete the row")
    if not isinstance(value, str):
        raise RowError(field, f"is {shown(value)}", "it must be a string")
