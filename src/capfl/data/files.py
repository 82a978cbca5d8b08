"""Rows from a file or folder, whatever kind it is: JSON Lines, JSON, CSV, Parquet, or what ``datasets`` saved."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capfl.config.data import SUFFIXES
from capfl.data.hints import rows_inside
from capfl.data.paths import require
from capfl.data.rows import Row, TwiceError, held_rows, parsed, unique
from capfl.errors import DataError

KINDS = "JSON Lines, a JSON array, CSV, TSV or Parquet, the first four also with .gz, or a folder that `datasets` saved"
BOM = b"\xef\xbb\xbf"
FOREIGN = {  # what files begin with that are often taken for rows, and what to do
    b"PK\x03\x04": "is a zip archive or a workbook; unpack it, or save its sheet as CSV",
    b"\xd0\xcf\x11\xe0": "is a workbook; save its sheet as CSV",
    b"BZh": "is compressed with bzip2; unpack it, or use gzip",
    b"\xfd7zXZ": "is compressed with xz; unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it, or use gzip",
    b"SQLite format 3": "is an SQLite database; export its table as CSV",
    b"ARROW1": "is an Arrow file; give the folder that `datasets` saved it in",
    b"\xff\xff\xff\xff": "is an Arrow file; give the folder that `datasets` saved it in",
    b"%PDF": "is a PDF; write its text as rows",
    b"\x80\x04": "is a pickle of Python, which capfl never loads; write its rows as JSON Lines",
    b"\x80\x05": "is a pickle of Python, which capfl never loads; write its rows as JSON Lines",
    b"version https://git-lfs": "is a pointer of Git LFS in place of the file; fetch that: git lfs pull",
}
WIDE = {  # byte order marks
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
HEADER = 2**16  # characters at the start of CSV in which its first line is looked for
_JSON = re.compile(rb'\s*(?:\{\s*"|\[\s*\{)')  # no header of CSV begins like this


def read_rows(path: Path, split: str = "train") -> list[Row]:
    """All rows of one file, read once. Its kind follows from what it begins with, and of CSV from its name.

    Args:
        split: of a saved folder that has several.

    Raises:
        DataError: it is missing, unreadable, empty, or of no known kind. What is wrong with one row alone is its fault.
    """
    require(path)
    if path.is_dir():
        return _saved(path, split)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file that you may read") from error
    packed = False
    if raw.startswith(b"\x1f\x8b"):
        try:
            raw, packed = gzip.decompress(raw), True
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: is damaged gzip ({error}); copy it again") from error
    rows = _rows_of(path, raw, packed)
    if not rows:
        raise DataError(f"{path}: has no rows; write one JSON object a line, or a header and lines of CSV")
    return rows


def name_of(path: str | Path) -> str:
    """A file's name without its suffix: of ``a/north.jsonl.gz``, ``north``."""
    name = Path(path).name
    plain = name[: -len(".gz")] if name.lower().endswith(".gz") else name
    for suffix in SUFFIXES:
        if plain.lower().endswith(suffix):
            return plain[: -len(suffix)]
    return Path(plain).stem


def _rows_of(path: Path, raw: bytes, packed: bool) -> list[Row]:
    for start, problem in FOREIGN.items():
        if raw.startswith(start):
            raise DataError(f"{path}: {problem}")
    if raw[257:262] == b"ustar":
        raise DataError(f"{path}: is a tar archive; unpack it, and give the files in it")
    name = path.name.lower().removesuffix(".gz")
    if raw.startswith(b"PAR1") or name.endswith(".parquet"):
        return _parquet(path, raw)
    if wide := _wide(raw):
        own, other = shlex.quote(path.name), shlex.quote(f"utf8-{path.name}")
        remedy = "unpack it and save it as UTF-8" if packed else f"save it as UTF-8: iconv -f {wide} -t UTF-8 {own}"
        raise DataError(f"{path}: is {wide[:6]}; {remedy}" + ("" if packed else f" > {other}"))
    raw = raw.removeprefix(BOM)
    if name.endswith((".csv", ".tsv")) and not _JSON.match(raw):
        return list(_csv(path, raw, "\t" if name.endswith(".tsv") else ""))
    if raw.lstrip().startswith(b"["):
        return _array(path, raw)
    return _lines(path, raw)


def _wide(raw: bytes) -> str:
    """The encoding of text with more than a byte for each letter, as iconv calls it; empty: another one."""
    if marked := next((name for mark, name in WIDE.items() if raw.startswith(mark)), ""):
        return marked
    zeros = [byte == 0 for byte in raw[:4]]
    if zeros == [True] * 3 + [False] or zeros == [False] + [True] * 3:
        return "UTF-32BE" if zeros[0] else "UTF-32LE"
    return "UTF-16BE" if zeros[:2] == [True, False] else "UTF-16LE" if zeros[:2] == [False, True] else ""


# -- JSON ----------------------------------------------------------------------------------------------------------


def _lines(path: Path, raw: bytes) -> list[Row]:
    # Split on the byte: str.splitlines would also cut at U+2028, which JSON allows inside strings.
    # JSON has no bare carriage return inside a string, so where there is no line feed it ends lines.
    end = b"\n" if b"\n" in raw else b"\r"
    lines = [(number, line) for number, line in enumerate(raw.split(end), start=1) if line.strip()]
    rows = [_decoded(f"{path}:{number}", line) for number, line in lines]
    if rows and all(row.fault.startswith("is not JSON") for row in rows):
        if not lines[0][1].lstrip().startswith(b"{"):
            raise DataError(
                f"{path}: none of its {len(rows)} lines is JSON, such as {lines[0][1][:40]!r}; capfl reads {KINDS}. "
                "CSV needs a name that ends with .csv or .tsv"
            )
        if len(rows) > 1:
            _refuse_one_object(path, raw)
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


def _array(path: Path, raw: bytes) -> list[Row]:
    try:
        values = parsed(_text(path, raw))
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


def _row_with_a_key_twice(text: str) -> int:
    """Its number in a JSON array, from 1."""
    decoder, at, number = json.JSONDecoder(object_pairs_hook=unique), text.index("[") + 1, 0
    while True:
        number += 1
        at += len(text[at:]) - len(text[at:].lstrip())
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


# -- tables ----------------------------------------------------------------------------------------------------------


def _csv(path: Path, raw: bytes, delimiter: str) -> Iterator[Row]:
    """Rows of CSV, whose place is the line on which they begin."""
    text = _text(path, raw)
    first = re.sub(r'"[^"]*"', "", text.lstrip()[:HEADER])  # a name in quotes may have any of them
    first = first.replace("\r", "\n").partition("\n")[0]
    delimiter = delimiter or max(",;\t|", key=first.count)
    before = csv.field_size_limit(2**31 - 1)  # a document may be longer than the module's limit
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    spaced = _spaced(text, delimiter)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if tuple(cells) in spaced:
                problem = "has spaces before quotes, which would be read as text"
                wrong = f"{problem}; delete the spaces behind each {delimiter!r}"
                if not header:
                    raise DataError(f"{where}: {wrong}")
                yield Row(where, {}, wrong)
            elif not cells or (not header and cells[0].startswith("sep=")):  # spreadsheets write the latter at the top
                continue
            elif not header:
                header = _header(where, cells)
            elif len(cells) != len(header):
                wrong = (
                    f"has {len(cells)} cells, and the header {len(header)}; put quotes around texts with {delimiter!r}"
                )
                yield Row(where, {}, wrong)
            else:
                yield Row(where, {name: cell for name, cell in zip(header, cells, strict=True) if name})
    except csv.Error as error:
        raise DataError(
            f"{path}:{line}: is not CSV ({error}); put quotes around texts with line ends, and around texts that begin "
            'with a quote, and write a quote inside as two: ""'
        ) from error
    finally:
        csv.field_size_limit(before)


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


def _text(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: byte {error.start + 1} of the file is not UTF-8; save it as UTF-8") from error


def _parquet(path: Path, raw: bytes) -> list[Row]:
    import pyarrow as pa  # here: it takes a while, and few files need it
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(raw))
        if b"huggingface" in (table.schema.metadata or {}):
            return _dataset_rows(path, table)
        return held_rows(str(path), table.to_pylist())
    except DataError:
        raise
    except Exception as error:  # whatever Arrow raises, and ``datasets`` of its description of the columns
        raise DataError(f"{path}: cannot be read as Parquet ({_first_line(error)}); write it again") from error


def _dataset_rows(path: Path, table: Any) -> list[Row]:
    """Rows of a table that ``datasets`` wrote, in which numbers may stand for names of classes."""
    import datasets

    return held_rows(str(path), datasets.Dataset(table))


def _saved(path: Path, split: str) -> list[Row]:
    """Rows of a folder that ``save_to_disk`` wrote."""
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever Arrow, fsspec and builders raise
        raise DataError(
            f"{path}: cannot be loaded as a saved data set ({_first_line(error)}); save it again"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(f"{path}: has no split {split!r}; take one of {', '.join(data)}: --data.split NAME")
        data = data[split]
    try:
        return held_rows(str(path), data)
    except DataError:
        raise
    except Exception as error:  # its files are read only now
        raise DataError(f"{path}: cannot be read ({_first_line(error)}); save it again") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
