"""What a run says while it goes on: callbacks, and the bars and lines of the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from capfl.config import Config
from capfl.report.summary import Summary, members_of
from capfl.report.tables import listed, percent, size
from capfl.types import EVERYBODY, ClientId, RoundRecord


class Callback:
    """Called by a run as it goes on. Subclass it and override what you need; nothing is done here.

    The calls come in this order. A run has its method and its references, such as ``local``: ``on_start`` and its
    rounds come once for each.
    """

    def on_begin(self, path: Path, config: Config) -> None:
        """The run's folder exists."""

    def on_note(self, text: str) -> None:
        """A sentence for people."""

    def on_start(self, method: str, rounds: int, done: int, visits: int) -> None:
        """A method begins, with so many rounds done before, and a number of clients to train in each round."""

    def on_client(self, client: ClientId, loss: float) -> None:
        """A client has trained; its mean loss, nats a token."""

    def on_round(self, record: RoundRecord) -> None:
        """A round is finished and on disk."""

    def on_evaluation(self, clients: int) -> None:
        """So many clients will be evaluated, the last step of a run."""

    def on_evaluated(self, client: ClientId) -> None:
        """A client has been evaluated."""

    def on_end(self, summary: Summary) -> None:
        """The run is finished and on disk."""


class Callbacks(Callback):
    """Several callbacks as one: each call goes to all of them, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)


def _to_all(name: str) -> Callable[..., None]:
    def call(self: Callbacks, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, name)(*arguments)

    return call


for _name in [name for name in vars(Callback) if name.startswith("on_")]:
    setattr(Callbacks, _name, _to_all(_name))


class Plain(Callback):
    """A line a round, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._method, self._rounds, self._done, self._bytes, self._began = "", 0, 0, 0, 0.0
        self._groups: dict[ClientId, str] = {}

    def on_note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_start(self, method: str, rounds: int, done: int, visits: int) -> None:
        self._method, self._rounds, self._done, self._bytes, self._groups = method, rounds, 0, 0, {}
        self._began = time.monotonic()

    def on_round(self, record: RoundRecord) -> None:
        self._done += 1
        self._bytes += record.bytes_up + record.bytes_down
        left = (time.monotonic() - self._began) / self._done * (self._rounds - record.round)
        line = f"{self._method} {round_line(record, self._rounds, self._bytes)}"
        self.on_note(f"{line}  left {int(left) // 60}:{int(left) % 60:02d}")
        groups = {client: name for client, name in record.groups.items() if name != EVERYBODY}
        if groups != self._groups:
            self._groups = groups
            told = [f"{name} ({listed(members)})" for name, members in sorted(members_of(groups).items())]
            self.on_note(f"{self._method} round {record.round}: groups {listed(told)}")


class Live(Plain):
    """A bar that moves with every client, and a line a round above it."""

    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__(console)
        self._progress = progress
        self._task = progress.add_task("", total=None, now="", visible=False)

    def on_start(self, method: str, rounds: int, done: int, visits: int) -> None:
        super().on_start(method, rounds, done, visits)
        self._bar(method, rounds * visits, done * visits)

    def on_client(self, client: ClientId, loss: float) -> None:
        self._progress.update(self._task, advance=1, now=f"{client} loss {loss:.3f}")

    def on_evaluation(self, clients: int) -> None:
        self._bar("evaluation", clients, 0)

    def on_evaluated(self, client: ClientId) -> None:
        self._progress.update(self._task, advance=1, now=client)

    def _bar(self, name: str, total: int, done: int) -> None:
        self._progress.reset(self._task, total=total, completed=done, visible=total > done)
        self._progress.update(self._task, description=name, now="")


def round_line(record: RoundRecord, rounds: int, n_bytes: int) -> str:
    """Round, clients, loss, validation accuracy and bytes, in one line."""
    parts = [f"round {record.round}/{rounds}", f"clients {len(record.clients)}"]
    if record.losses:
        parts.append(f"loss {record.loss:.3f}")
    if record.validation_accuracy is not None:
        parts.append(f"validation {percent(record.validation_accuracy)} %")
    if record.epsilon is not None:
        parts.append(f"epsilon {record.epsilon:.3g}")
    parts.append(f"up {size(record.bytes_up)}  down {size(record.bytes_down)}  so far {size(n_bytes)}")
    parts += [f"FAILED {failure.client}: {failure.stage}: {failure.reason}" for failure in record.failures]
    return "  ".join(parts)


@contextmanager
def progress_of(console: Console) -> Iterator[Callback]:
    """Bars in a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield Plain(console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} clients"),
        TimeRemainingColumn(), TextColumn("{task.fields[now]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield Live(console, progress)
