"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capfl.errors import CheckpointError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old content or the new, never a part.

    Raises:
        CheckpointError: the disk is full or the place cannot be written; names the file and the remedy.
    """
    work = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(work, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk name the file and the remedy. Raises CheckpointError."""
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder"
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; {remedy}, then go on with: capfl run --resume RUN_FOLDER"
        ) from error
