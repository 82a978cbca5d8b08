"""What a run's rounds did: rounds.jsonl, whose lines are appended and never changed.

A line is the record of a round. Where a round is added to later, by a validation, its record stands again in the next
line, and that one counts. A line that a crash has cut off is none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capfl.errors import CheckpointError
from capfl.files import naming
from capfl.types import Entry, Failure, RoundRecord

BLOCK = 2**16  # bytes that are read at once from the end


class History:
    """The records in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: str) -> None:
        """Add a line, and wait until it is on disk. Raises CheckpointError: it cannot be written."""
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())

    def cut(self, length: int) -> None:
        """Drop all that is beyond so many bytes. Raises CheckpointError: as ``append``."""
        if self.path.is_file() and self.path.stat().st_size > length:
            with naming(self.path), open(self.path, "r+b") as file:
                file.truncate(length)
                os.fsync(file.fileno())

    def lines(self, offset: int = 0) -> Iterator[bytes]:
        """The complete lines from so many bytes on, one by one."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as file:
            file.seek(offset)
            yield from (line for line in file if line.endswith(b"\n"))

    def digest(self, rounds: int) -> tuple[str, int]:
        """The digest of the lines of the first rounds, and how many bytes they have.

        Raises:
            ValueError, TypeError, AttributeError: a line is no record.
        """
        found, length = "", 0
        for line in self.lines():
            row = json.loads(line)
            if row.get("round", 0) > rounds:
                break
            found, length = _chained(found, row), length + len(line)
        return found, length

    def read(self, offset: int = 0) -> tuple[list[RoundRecord], int]:
        """The records in the lines from so many bytes on, and where the next line will begin.

        Raises:
            CheckpointError: a line is no record; names it.
        """
        records: list[RoundRecord] = []
        for line in self.lines(offset):
            try:
                record = _record(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                with open(self.path, "rb") as file:
                    n = file.read(offset).count(b"\n") + 1
                raise CheckpointError(
                    f"{self.path}, line {n}, is no record of a round ({error}); restore the file from a copy"
                ) from error
            if records and records[-1].groups == record.groups:  # it is in memory once
                record = dataclasses.replace(record, groups=records[-1].groups)
            if records and records[-1].round == record.round:
                records.pop()
            records.append(record)
            offset += len(line)
        return records, offset

    def last(self) -> RoundRecord | None:
        """The newest record, for which the file is read from its end. Raises CheckpointError: as ``read``."""
        if not self.path.is_file():
            return None
        with open(self.path, "rb") as file:
            begin, tail = file.seek(0, os.SEEK_END), b""
            while begin and tail[: tail.rfind(b"\n")].count(b"\n") < 1:
                begin, end = max(0, begin - BLOCK), begin
                file.seek(begin)
                tail = file.read(end - begin) + tail
        whole = tail[: tail.rfind(b"\n")]  # the last complete line, and what is before it
        records, _ = self.read(begin + whole.rfind(b"\n") + 1)
        return records[-1] if records else None


def line_of(record: RoundRecord) -> str:
    """A record as a line."""
    return json.dumps(dataclasses.asdict(record)) + "\n"


def chained(before: str, line: str) -> str:
    """A digest of a line and, by their digest, of all before it."""
    return _chained(before, json.loads(line))


def _chained(before: str, row: dict[str, Any]) -> str:
    """The time that a round took is not in it: equal runs have equal states."""
    timeless = {key: value for key, value in row.items() if key != "seconds"}
    return hashlib.blake2b(f"{before}{json.dumps(timeless)}".encode(), digest_size=16).hexdigest()


def _record(row: dict[str, Any]) -> RoundRecord:
    row["clients"] = tuple(row["clients"])
    row["failures"] = tuple(Failure(**failure) for failure in row["failures"])
    row["ledger"] = tuple(Entry(**entry) for entry in row["ledger"])
    return RoundRecord(**row)
