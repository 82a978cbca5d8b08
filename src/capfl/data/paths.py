"""Where rows are, and what to say where they are not: near names, and the files of a folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from capfl.config.data import SUFFIXES
from capfl.config.names import did_you_mean
from capfl.errors import DataError

MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")  # of what ``datasets`` saved
DESCRIPTIONS = (*MARKS, "dataset_infos.json")  # of data sets, in the folders of their files
SHOWN = 5  # names in a message


def require(path: Path) -> None:
    """See that there is a file, or a folder that ``datasets`` saved, before anything is read.

    Raises:
        DataError: there is none. Says which names are near, or what a folder holds.
    """
    try:
        if path.is_dir():
            if not is_saved(path):
                raise DataError(f"{path}: {folder_words(path)}")
        elif path.is_symlink() and not path.exists():
            raise DataError(
                f"{path}: is a link to {path.readlink()}, which does not exist; repair it, or give the file"
            )
        elif not path.exists():
            raise DataError(f"{path}: no such file{near(path)}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a file") from error


def is_saved(folder: Path) -> bool:
    """Did ``save_to_disk`` of ``datasets`` write it?"""
    return any((folder / mark).is_file() for mark in MARKS)


def folder_words(path: Path) -> str:
    """What a folder is that ``datasets`` did not save, and what to give in its place."""
    said = "is a folder that `datasets` did not save (save_to_disk)"
    if found := _rows_in(path):
        more = f" ... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return f"{said}; give its files, each a client: {_words(found[:SHOWN])}{more}"
    inside = [own for own in sorted(path.iterdir()) if own.is_dir()] if path.is_dir() else []
    if saved := [own for own in inside if is_saved(own)]:
        return f"{said}; give one of those in it: {_words(saved[:SHOWN])}"
    if deeper := [file for own in inside for file in _rows_in(own)]:
        return f"{said}; give the files in its folders: {_words(deeper[:SHOWN])}"
    return f"{said}, and it has no file of rows in it ({', '.join(SUFFIXES)})"


def near(path: Path) -> str:
    """What to say of names near one that is not there, or of what is there."""
    folder = path.parent
    if not folder.is_dir():
        there = next((own for own in folder.parents if own.is_dir()), Path())
        return f"; there is no folder {folder} in {there.absolute()}, where the path starts"
    stems: dict[str, list[str]] = {}  # suffixes would make any two files alike
    for own in sorted(folder.iterdir()):
        if not own.name.startswith("."):
            stems.setdefault(own.name.split(".")[0].lower(), []).append(str(own))
    alike = get_close_matches(path.name.split(".")[0].lower(), list(stems), n=3, cutoff=0.7)
    if alike:
        return did_you_mean([name for stem in alike for name in stems[stem]][:3])
    rows = _rows_in(folder)
    has = f"has {', '.join(own.name for own in rows[:SHOWN])}" if rows else "has no file of rows"
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return f"; {folder.absolute()} {has}{more}"


def _rows_in(folder: Path) -> list[Path]:
    found = (own for own in folder.iterdir() if own.name.lower().removesuffix(".gz").endswith(SUFFIXES))
    return sorted(own for own in found if own.name not in DESCRIPTIONS)


def _words(paths: Iterable[Path]) -> str:
    """Paths as a shell takes them, and such that capfl takes them for paths."""
    return " ".join(shlex.quote(str(path) if "/" in str(path) else f"./{path}") for path in paths)
