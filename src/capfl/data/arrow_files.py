"""Rows from Parquet, or from a folder that ``datasets`` saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capfl.data.rows import Row, held_rows
from capfl.errors import DataError


def parquet_rows(path: Path, raw: bytes) -> list[Row]:
    """Rows of a Parquet file. Raises DataError: it cannot be read; names the value, where it is one."""
    import pyarrow as pa  # here: it takes a while, and few files need it
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(raw)).read()
    except Exception as error:  # whatever Arrow raises
        raise DataError(f"{path}: cannot be read as Parquet ({_first_line(error)}); write it again") from error
    names = table.column_names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: has two columns {twice!r}; rename one")
    if b"huggingface" not in (table.schema.metadata or {}):
        return _rows(path, table.to_pylist, lambda: table)
    return _rows(path, lambda: _of_datasets(table), lambda: table)


def saved_rows(path: Path, split: str) -> list[Row]:
    """Rows of a folder that ``save_to_disk`` wrote.

    Args:
        split: the one to read, of a folder that has several.

    Raises:
        DataError: it cannot be read, has no such split, or no rows.
    """
    import datasets

    folder = path
    try:
        if (listed := path / "dataset_dict.json").is_file():
            splits = json.loads(listed.read_text(encoding="utf-8"))["splits"]
            folder = path / split if split in splits else folder
        else:
            splits = [split]
        state = folder / "state.json"
        empty = split in splits and state.is_file() and not json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        data = None if empty or split not in splits else datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever JSON, Arrow, fsspec and builders raise
        raise DataError(
            f"{path}: cannot be loaded as a saved data set ({_first_line(error)}); save it again"
        ) from error
    if split not in splits:
        raise DataError(f"{path}: has no split {split!r}; take one of {', '.join(splits)}: --data.split NAME")
    if data is None:  # ``datasets`` cannot load what has no rows
        raise DataError(f"{folder}: has no rows; give one at least")
    return _rows(path, lambda: data, lambda: data.with_format("arrow")[:])


def _of_datasets(table: Any) -> Any:
    """A table that ``datasets`` wrote, in which numbers may stand for names of classes."""
    import datasets

    return datasets.Dataset(table)


def _rows(path: Path, held: Callable[[], Any], table: Callable[[], Any]) -> list[Row]:
    """``held_rows`` of what ``held`` gives.

    Raises:
        DataError: it cannot be read; names the value of ``table`` that Python cannot have, if it is one.
    """
    try:
        return held_rows(str(path), held())
    except DataError:
        raise
    except Exception as error:  # whatever Arrow raises, and ``datasets`` of its description of the columns
        said = _unreadable(table) or f"cannot be read ({_first_line(error)}); write it again"
        raise DataError(f"{path}: {said}") from error


def _unreadable(table: Callable[[], Any]) -> str:
    """Which value of a table Python cannot have, and what to do; empty: the fault is another one."""
    try:
        read = table()
    except Exception:  # the file itself is damaged
        return ""
    for name in read.column_names:
        for number, value in enumerate(read[name], start=1):
            try:
                value.as_py()
            except Exception as error:
                remedy = "correct it, save text as UTF-8, or leave the column out"
                return f"row {number}: column {name!r} cannot be read ({_first_line(error)}); {remedy}"
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
