"""Raw rows of a data set and the report of all that are wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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

    Raises
    ------
    DataError
        The file is missing, unreadable, empty, or one JSON array instead of JSON Lines.
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


def parse_rows(place: str, rows: Sequence[Row], faults: Sequence[str], parse: Callable[[Row], T]) -> list[T]:
    """Apply ``parse`` to all rows.

    Raises
    ------
    DataError
        Any row was refused with a ``RowError``, or ``faults`` of reading is not empty. Counts all of them.
    """
    parsed: list[T] = []
    wrong = list(faults)
    for row in rows:
        try:
            parsed.append(parse(row))
        except RowError as error:
            wrong.append(f"{row.where}: {error}")
    refuse(place, len(rows) + len(faults), wrong)
    return parsed


def refuse(place: str, n_rows: int, faults: Sequence[str]) -> None:
    """Report faults, if there are any.

    Raises
    ------
    DataError
        ``faults`` is not empty. Gives their number and the first few.
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

    Raises
    ------
    RowError
        The field is missing, no string, or blank.
    """
    if field not in values:
        raise RowError(field, "is missing", f"the row has {', '.join(map(repr, values)) or 'no fields'}")
    value = values[field]
    if not isinstance(value, str):
        raise RowError(field, f"is {value!r:.60}", "it must be a string")
    if not value.strip():
        raise RowError(field, "is empty", "fill it in or delete the row")
    return value.strip()
