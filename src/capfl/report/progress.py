"""Progress while a run goes on: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from capfl.config import Config
from capfl.report.summary import Summary
from capfl.report.tables import percent, size
from capfl.types import ClientId, RoundRecord


class Reporter(Protocol):
    """What a run tells while it goes on."""

    def begin(self, path: Path, config: Config) -> None: ...
    def note(self, text: str) -> None: ...
    def start(self, method: str, rounds: int, done: int, visits: int) -> None: ...
    def client(self, client: ClientId, loss: float) -> None: ...
    def round(self, record: RoundRecord) -> None: ...
    def finish(self, summary: Summary) -> None: ...


class Silent:
    """Says nothing: the default of the Python API."""

    def begin(self, path: Path, config: Config) -> None: ...
    def note(self, text: str) -> None: ...
    def start(self, method: str, rounds: int, done: int, visits: int) -> None: ...
    def client(self, client: ClientId, loss: float) -> None: ...
    def round(self, record: RoundRecord) -> None: ...
    def finish(self, summary: Summary) -> None: ...


class Plain:
    """A line a round, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._method, self._rounds, self._done, self._bytes, self._began = "", 0, 0, 0, 0.0

    def begin(self, path: Path, config: Config) -> None:
        pass

    def finish(self, summary: Summary) -> None:
        pass

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start(self, method: str, rounds: int, done: int, visits: int) -> None:
        self._method, self._rounds, self._done, self._bytes = method, rounds, 0, 0
        self._began = time.monotonic()

    def client(self, client: ClientId, loss: float) -> None:
        pass

    def round(self, record: RoundRecord) -> None:
        self._done += 1
        self._bytes += record.bytes_up + record.bytes_down
        self.note(f"{self._method} " + round_line(record, self._rounds, self._bytes) + f"  left {self._left(record)}")

    def _left(self, record: RoundRecord) -> str:
        seconds = (time.monotonic() - self._began) / self._done * (self._rounds - record.round)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Live(Plain):
    """A bar that moves with every client, and a line a round above it."""

    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__(console)
        self._progress = progress
        self._task = progress.add_task("", total=None, now="", visible=False)

    def start(self, method: str, rounds: int, done: int, visits: int) -> None:
        super().start(method, rounds, done, visits)
        self._progress.reset(self._task, total=rounds * visits, completed=done * visits, visible=rounds > done)
        self._progress.update(self._task, description=method, now="")

    def client(self, client: ClientId, loss: float) -> None:
        self._progress.update(self._task, advance=1, now=f"{client} loss {loss:.3f}")


def round_line(record: RoundRecord, rounds: int, n_bytes: int) -> str:
    """Round, clients, loss, validation accuracy and bytes, in one line."""
    parts = [f"round {record.round}/{rounds}", f"clients {len(record.clients)}", f"loss {record.loss:.3f}"]
    if record.validation_accuracy is not None:
        parts.append(f"validation {percent(record.validation_accuracy)} %")
    if record.epsilon is not None:
        parts.append(f"epsilon {record.epsilon:.3g}")
    parts.append(f"up {size(record.bytes_up)}  down {size(record.bytes_down)}  so far {size(n_bytes)}")
    parts += [f"FAILED {failure.client}: {failure.stage}: {failure.reason}" for failure in record.failures]
    return "  ".join(parts)


@contextmanager
def reporting(console: Console) -> Iterator[Reporter]:
    """A live reporter in a terminal, a plain one elsewhere."""
    if not console.is_terminal:
        yield Plain(console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} visits"),
        TimeRemainingColumn(), TextColumn("{task.fields[now]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield Live(console, progress)
