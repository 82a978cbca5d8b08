"""Files that appear whole or not at all, and folders that one process has for itself."""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from capfl.errors import CheckpointError, printable

try:
    import fcntl
except ImportError:  # not on Windows, where two processes are not kept apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
RESUME = "continue with: capfl run --resume RUN_FOLDER"
AGAIN = "run the same command again"


def write_atomically(path: Path, data: bytes | Iterable[bytes], then: str = RESUME) -> None:
    """Write a file so that a crash at any moment leaves the old content or the new, never a part.

    Args:
        data: the content, or its pieces one after the other.
        then: what to do once the disk has been seen to.

    Raises:
        CheckpointError: the disk is full or the place cannot be written; names the file and the remedy.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path, then):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(work, "wb") as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)


def json_text(value: object, line: str = "\n") -> Iterator[str]:
    """What ``json.dumps(value, indent=1)`` gives, piece by piece. What an iterator gives becomes a list.

    Args:
        line: a line end, and what the next line begins with.
    """
    inside, between = line + " ", ""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield f"{between or '{'}{inside}{json.dumps(key)}: "
            yield from json_text(one, inside)
            between = ","
        yield line + "}"
    elif isinstance(value, Iterator):
        for one in value:
            yield f"{between or '['}{inside}"
            yield from json_text(one, inside)
            between = ","
        yield line + "]" if between else "[]"
    else:
        yield json.dumps(value, indent=1).replace("\n", line)  # no other line ends are in JSON


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run. Raises CheckpointError: there is no such file, or it holds no JSON object."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; is {path.parent} a run folder?") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object; restore it from a copy")
    return value


def in_the_way(path: Path) -> str | None:
    """Why a folder cannot be made at a path, and what to do; None: it can."""
    if path.exists() and not path.is_dir():
        return f"{path} is a file; give a new or empty folder"
    return f"{path} is not empty; choose another folder" if path.is_dir() and any(path.iterdir()) else None


def new_folder(path: Path) -> None:
    """Make a folder, or take an empty one. Of several processes that want it, one gets it.

    Raises:
        CheckpointError: something is there already, or the folder cannot be made.
    """
    taken = f"{path} is not empty; choose another folder, or continue with: capfl run --resume {path}"
    with naming(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise CheckpointError(taken)
            os.close(os.open(path / LOCK, os.O_CREAT | os.O_EXCL, 0o666))  # by one process only
        except FileExistsError:
            raise CheckpointError(taken if path.is_dir() else in_the_way(path)) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder for this process alone. The lock ends with the process, however that ends.

    While it is held, the lock file says by whom. What a process that was killed has left there counts for nothing.

    Raises:
        CheckpointError: another process has the folder, or it cannot be written; names the process.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - closed below
    with file:
        with naming(folder):
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(
                    f"{folder} is in use by {_holder(file)}; wait until it has ended, or choose another folder"
                ) from None
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": platform.node()}))
            file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # a full disk: the lock goes all the same
                file.truncate(0)


def _holder(file: TextIO) -> str:
    """Who has a lock, as far as the file says: it may be read before its holder has written."""
    file.seek(0)
    try:
        said = json.loads(file.read())
        return f"process {int(said['pid'])} on {printable(str(said['host']), 100)}"
    except (ValueError, TypeError, KeyError):
        return "another process"


def private_folder(path: Path) -> None:
    """Make a folder, or take one that is there, and let nobody but its owner into it. Raises CheckpointError."""
    with naming(path, AGAIN):
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)


def is_locked(folder: Path) -> bool:
    """Has a process the folder for itself? Never True where the system has no such locks."""
    if fcntl is None or not (folder / LOCK).is_file():
        return False
    with open(folder / LOCK, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def naming(path: Path, then: str = RESUME) -> Iterator[None]:
    """Errors of the disk name the file and the remedy. Raises CheckpointError."""
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}; {remedy}, then {then}") from error
