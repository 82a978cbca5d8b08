"""Rows from JSON Lines, or from one JSON array."""

from __future__ import annotations

import json
import re
from pathlib import Path

from capfl.data.hints import rows_inside
from capfl.data.rows import Row, TwiceError, parsed, unique
from capfl.data.utf8 import text_in
from capfl.errors import DataError

_BLANK = re.compile(r"\s*")


def json_lines(path: Path, raw: bytes, kinds: str) -> list[Row]:
    """Rows of a file with one JSON object a line.

    Args:
        kinds: the kinds of file that are read, for the error.

    Raises:
        DataError: no line is JSON. What is wrong with one line alone is its row's fault.
    """
    # Bytes are split at line feeds and carriage returns, neither of which JSON has inside a string. Text would also
    # be split at U+2028, which JSON allows there.
    lines = [(number, line) for number, line in enumerate(raw.splitlines(), start=1) if line.strip()]
    rows = [_decoded(f"{path}:{number}", line) for number, line in lines]
    if rows and all(row.fault.startswith("is not JSON") for row in rows):
        if not lines[0][1].lstrip().startswith(b"{"):
            raise DataError(
                f"{path}: none of its {len(rows)} lines is JSON, such as {lines[0][1][:40]!r}; capfl reads {kinds}. "
                "CSV needs a name that ends with .csv or .tsv"
            )
        if len(rows) > 1:
            _refuse_one_object(path, raw)
    return rows


def json_array(path: Path, raw: bytes) -> list[Row]:
    """Rows of a file that is one JSON array of objects. Raises DataError: it is none."""
    try:
        values = parsed(text_in(path, raw))
    except TwiceError as error:
        raise DataError(f"{path}: row {_row_with_a_key_twice(raw.decode())}: {error}; keep one of them") from error
    except ValueError as error:
        raise DataError(
            f"{path}: is not one JSON array ({error}); write [ row, row, ... ], or one row a line"
        ) from error
    rows = []
    for number, row in enumerate(values, start=1):
        where, known = f"{path}: row {number}", isinstance(row, dict)
        fault = "" if known else f"is a JSON {type(row).__name__}; write one JSON object a row"
        rows.append(Row(where, row if known else {}, fault))
    return rows


def _decoded(where: str, line: bytes) -> Row:
    try:
        values = parsed(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Row(where, {}, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8")
    except ValueError as error:
        return Row(where, {}, f"is not JSON ({error}); write one complete JSON object a line")
    if not isinstance(values, dict):
        return Row(where, {}, f"is a JSON {type(values).__name__}; write one JSON object a line")
    return Row(where, values)


def _row_with_a_key_twice(text: str) -> int:
    """Its number in a JSON array, from 1."""
    decoder, at, number = json.JSONDecoder(object_pairs_hook=unique), text.index("[") + 1, 0
    while True:
        number += 1
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
        try:
            at = decoder.raw_decode(text, at)[1]
        except TwiceError:
            return number
        at = text.index(",", at) + 1


def _refuse_one_object(path: Path, raw: bytes) -> None:
    """Raises DataError: the file is one JSON object over several lines, as some tools write all rows in one."""
    try:
        whole = json.loads(raw)
    except (ValueError, RecursionError):
        return
    rows = rows_inside(whole) if isinstance(whole, dict) else ""
    raise DataError(f"{path}: is one JSON object over several lines; write an array, or one object a line{rows}")
