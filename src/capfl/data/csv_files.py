"""Rows from CSV and TSV."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from capfl.data.rows import Row
from capfl.data.utf8 import BOM, text_in
from capfl.errors import DataError

START = 2**16  # characters of a file that show what is between its cells
LOOKED_AT = 20  # rows of them
_SEPARATOR = re.compile(r"sep=(.)[\r\n]")  # spreadsheets write this as the first line
_MARK = BOM.decode()


def csv_rows(path: Path, raw: bytes, delimiter: str = "") -> list[Row]:
    """Rows of CSV, whose place is the line on which they begin. All cells are text.

    Args:
        delimiter: what is between cells; empty: the one of comma, semicolon, tab and bar that fits most rows.

    Raises:
        DataError: it is no CSV, or its header cannot be used. What is wrong with one row alone is its fault.
    """
    text = text_in(path, raw)
    before = csv.field_size_limit(2**31 - 1)  # a document may be longer than the module's limit
    try:
        return list(_rows(path, text, delimiter or _delimiter(text)))
    finally:
        csv.field_size_limit(before)


def _rows(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    spaced = _spaced(text, delimiter)
    header: list[str] = []
    widths: Counter[int] = Counter()  # of the rows below the header
    line = at = 1
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if tuple(cells) in spaced:
                problem = "has spaces before quotes, which would be read as text"
                wrong = f"{problem}; delete the spaces behind each {delimiter!r}"
                if not header:
                    raise DataError(f"{where}: {wrong}")
                yield Row(where, {}, wrong)
            elif not cells:
                continue
            elif not header:
                at = reader.line_num
                if cells[0].startswith("sep=") or not any(cell.strip() for cell in cells):
                    continue
                header = _header(where, cells)
            else:
                widths[len(cells)] += 1
                yield _row(where, header, cells, delimiter)
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: is not CSV ({error}); put quotes around texts with line ends, and around texts that begin "
            'with a quote, and write a quote inside as two: ""'
        ) from error
    if len(widths) == 1 and len(header) == 1 and (width := next(iter(widths))) > 1:
        remedy = f"delete this line if it is a title, or name each column in it, with {delimiter!r} between the names"
        raise DataError(f"{path}:{at}: has one cell, and the rows below have {width}; {remedy}")


def _row(where: str, header: list[str], cells: list[str], delimiter: str) -> Row:
    if [cell.removeprefix(_MARK).strip() for cell in cells] == header:
        return Row(where, {}, "is the header again; delete the line")
    if len(cells) != len(header):
        count = f"has {len(cells)} cells, and the header {len(header)}"
        return Row(where, {}, f"{count}; put quotes around texts with {delimiter!r}")
    return Row(where, {name: cell for name, cell in zip(header, cells, strict=True) if name})


def _delimiter(text: str) -> str:
    """What is between cells: what the first line says, or what gives the most of the first rows the same width."""
    text = text.lstrip()
    if said := _SEPARATOR.match(text):
        return said[1]

    def fits(delimiter: str) -> tuple[int, int]:
        reader = csv.reader(io.StringIO(text[:START], newline=""), delimiter=delimiter)
        widths = Counter(len(cells) for cells in islice(reader, LOOKED_AT) if cells)
        width, rows = max(widths.items(), key=lambda found: found[::-1], default=(1, 0))
        return (rows if width > 1 else 0), width

    return max(",;\t|", key=fits)


def _spaced(text: str, delimiter: str) -> set[tuple[str, ...]]:
    """Rows with cells such as ``, "b"``, whose quotes count only for those who skip the space, as many think it is."""
    if not re.search(rf'{re.escape(delimiter)} +"', text):
        return set()
    plain, skipping = (
        csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=skip)
        for skip in (False, True)
    )
    found = set()
    try:
        for cells, skipped in zip(plain, skipping, strict=False):
            if [cell.lstrip(" ") for cell in cells] != [cell.lstrip(" ") for cell in skipped]:
                found.add(tuple(cells))
    except csv.Error:
        pass  # quotes within texts; if the file is wrong, its reader says so
    return found


def _header(where: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise DataError(f"{where}: the header has {twice[0]!r} twice; rename one")
    return names
