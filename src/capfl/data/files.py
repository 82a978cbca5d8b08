"""Rows from a file or folder, whatever kind it is: JSON Lines, JSON, CSV, Parquet, or what ``datasets`` saved."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from capfl.config.data import SUFFIXES
from capfl.data.arrow_files import parquet_rows, saved_rows
from capfl.data.csv_files import csv_rows
from capfl.data.json_files import json_array, json_lines
from capfl.data.paths import require
from capfl.data.rows import Row
from capfl.data.utf8 import refuse_foreign, refuse_no_text, without_marks
from capfl.errors import DataError

KINDS = "JSON Lines, a JSON array, CSV, TSV or Parquet, the first four also with .gz, or a folder that `datasets` saved"
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
        return saved_rows(path, split)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file that you may read") from error
    packed = raw.startswith(b"\x1f\x8b")
    if packed:
        try:
            raw = gzip.decompress(raw)
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
    name = path.name.lower().removesuffix(".gz")
    refuse_foreign(path, raw)
    if raw.startswith(b"PAR1") or name.endswith(".parquet"):
        return parquet_rows(path, raw)
    refuse_no_text(path, raw, packed, KINDS)
    raw = without_marks(raw)
    if name.endswith((".csv", ".tsv")) and not _JSON.match(raw):
        return csv_rows(path, raw, "\t" if name.endswith(".tsv") else "")
    if raw.lstrip().startswith(b"["):
        return json_array(path, raw)
    return json_lines(path, raw, KINDS)
