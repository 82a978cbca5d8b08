"""What happens at a server or a node, one JSON object a line, for programs that watch them.

A line has ``time`` (ISO 8601, UTC), ``event``, and values of it. No rows, keys or texts of errors are among them: these
stay in the logs beside it.
"""

from __future__ import annotations

import datetime
import json
import os
from contextlib import suppress
from pathlib import Path

FILE = "events.jsonl"
LONGEST = 10 * 2**20  # bytes, after which a new file is begun and the one before the last is dropped


class Events:
    """The file of events in a folder. Several processes may write to it.

    A disk that is full ends no node: what cannot be written is left out.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def __call__(self, event: str, **values: str | int | float) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **values}) + "\n"
        with suppress(OSError):
            if self.path.is_file() and self.path.stat().st_size > LONGEST:
                os.replace(self.path, self.path.with_name(f"{FILE}.1"))
            with os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
                file.write(line.encode())  # in one piece: lines of several processes do not mix
