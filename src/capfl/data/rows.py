"""Raw rows of a data set and the report of all that are wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from capfl.errors import DataError

T = TypeVar("T")
SHOWN = 5  # faults listed in one message; the rest are counted


class RowError(Exception):
    """One row cannot be used: which field, what is wrong, what to do."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"field {field!r} {problem}; {remedy}")


@dataclass(frozen=True, slots=True)
class Row:
    """One decoded row and the place that error messages name, such as ``data.jsonl:12``."""

    where: str
    values: Mapping[str, Any]


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Decode a JSON Lines file; blank lines and a byte order mark are skipped.

    Returns the rows and one message for each line that is no JSON object in UTF-8.

    Raises:
        DataError: the file is missing, unreadable, empty, or one JSON array instead of JSON Lines.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path (it is relative to the working folder)") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a readable JSON Lines file") from error
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if raw.lstrip().startswith(b"["):
        raise DataError(f"{path}: is one JSON array; write JSON Lines instead, one object a line")
    rows: list[Row] = []
    faults: list[str] = []
    # Split on the byte: str.splitlines would also cut at U+2028, which JSON allows inside strings.
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            faults.append(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8")
        except (ValueError, RecursionError) as error:
            faults.append(f"{where}: is not JSON ({error}); write one complete JSON object a line")
        else:
            if isinstance(values, dict):
                rows.append(Row(where, values))
            else:
                faults.append(f"{where}: is a JSON {type(values).__name__}; write one JSON object a line")
    if not rows and not faults:
        raise DataError(f"{path}: has no rows; write one JSON object a line")
    return rows, faults


def held_rows(client: str, rows: Iterable[Any]) -> tuple[list[Row], list[str]]:
    """Rows that are in memory, such as a list of dicts or a ``datasets.Dataset``, whose class numbers become names.

    Returns the rows and one message for each that is no mapping, as ``read_rows``.

    Raises:
        DataError: there are no rows.
    """
    classes = {n: kind for n, kind in (getattr(rows, "features", None) or {}).items() if hasattr(kind, "int2str")}
    found: list[Row] = []
    faults: list[str] = []
    for number, values in enumerate(rows, start=1):
        where = f"client {client!r}: row {number}"
        if isinstance(values, Mapping):
            plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
            found.append(Row(where, with_class_names(plain, classes)))
        else:
            faults.append(f"{where}: is a {type(values).__name__}; give one dict a row")
    if not found and not faults:
        raise DataError(f"client {client!r}: has no rows; give one dict a row")
    return found, faults


def with_class_names(values: Mapping[str, Any], classes: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the names of its classes in place of their numbers; a hidden class, None or -1, becomes empty."""
    named = {
        name: kind.int2str(values[name]) if values[name] is not None and values[name] >= 0 else ""
        for name, kind in classes.items()
    }
    return {**values, **named}


def parse_rows(place: str, rows: Sequence[Row], faults: Sequence[str], parse: Callable[[Row], T]) -> list[T]:
    """Apply ``parse`` to all rows.

    Raises:
        DataError: any row was refused with a ``RowError``, or ``faults`` of reading is not empty. Counts all of them.
    """
    parsed: list[T] = []
    wrong = list(faults)
    for row in rows:
        try:
            _refuse_broken_text(row.values)
            parsed.append(parse(row))
        except RowError as error:
            wrong.append(f"{row.where}: {error}")
    refuse(place, len(rows) + len(faults), wrong)
    return parsed


def _refuse_broken_text(values: Mapping[str, Any]) -> None:
    """Half of a surrogate pair, such as "\\ud83d" alone, is valid JSON, and no text that a tokenizer takes.

    Raises:
        RowError: names the field.
    """
    for field, value in values.items():
        for text in _texts(value):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = f"half of a character, \\u{ord(text[error.start]):x}, at position {error.start + 1}"
                raise RowError(field, f"has {half}", "write the whole character or delete the row") from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def refuse(place: str, n_rows: int, faults: Sequence[str]) -> None:
    """Report faults, if there are any.

    Raises:
        DataError: ``faults`` is not empty. Gives their number and the first few.
    """
    if not faults:
        return
    lines = [f"{len(faults)} of {n_rows} rows of {place} cannot be used:"]
    lines += [f"  {fault}" for fault in faults[:SHOWN]]
    if len(faults) > SHOWN:
        lines.append(f"  ... and {len(faults) - SHOWN} more")
    raise DataError("\n".join(lines))


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
