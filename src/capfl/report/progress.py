"""What a run says while it goes on: callbacks, and the bars and lines of the command line."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from capfl.config import Config
from capfl.errors import CapflError, ClientError, UnexpectedError, described
from capfl.report.summary import Summary, members_of
from capfl.report.tables import listed, size, with_unit
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
        """A client has trained; its mean loss, nats a token. Not called of clients that say none."""

    def on_round(self, record: RoundRecord) -> None:
        """A round is finished and on disk."""

    def on_evaluation(self, clients: int) -> None:
        """So many clients will be evaluated, the last step of a run."""

    def on_evaluated(self, client: ClientId) -> None:
        """A client has been evaluated."""

    def on_end(self, summary: Summary) -> None:
        """The run is finished and on disk."""


class Place(Callback):
    """Where a run stands, for whoever interrupts it."""

    path: Path | None = None
    method = ""
    round = 0

    def on_begin(self, path: Path, config: Config) -> None:
        self.path = path

    def on_start(self, method: str, rounds: int, done: int, visits: int) -> None:
        self.method, self.round = method, done

    def on_round(self, record: RoundRecord) -> None:
        self.round = record.round

    def said(self, more: str = "") -> str:
        """How to go on.

        Args:
            more: flags beside the folder.
        """
        if self.path is None:
            return "interrupted before anything was written; start it again"
        where = f" ({self.method}, after round {self.round})" if self.method else ""
        return f"interrupted{where}; continue with: capfl run --resume {self.path}{more}"


class _Tracebacks(logging.Handler):
    """Writes those that capfl logs, of errors that nobody raised on purpose, into the run's folder."""

    def __init__(self, place: Place) -> None:
        super().__init__(logging.DEBUG)
        self.place = place

    @property
    def file(self) -> Path | None:
        return self.place.path / "traceback.txt" if self.place.path else None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if self.file and error and not isinstance(error, CapflError):
            with self.file.open("a", encoding="utf-8") as out:  # workers write, too
                out.write("".join([*traceback.format_exception(error), "\n"]))


@contextmanager
def tracebacks(place: Place) -> Iterator[None]:
    """Within it, an error that nobody raised on purpose is a sentence, and its traceback in the run's folder.

    Raises:
        UnexpectedError: in place of such an error, once the run has a folder.
    """
    logger, kept = logging.getLogger("capfl"), _Tracebacks(place)
    before = logger.level
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    except ClientError as error:
        if kept.file and kept.file.exists():
            error.args = (f"{error}; traceback in {kept.file}",)
        raise
    except Exception as error:
        if isinstance(error, CapflError) or not kept.file:
            raise
        logger.debug("the run failed", exc_info=error)
        raise UnexpectedError(f"{described(error)}; traceback in {kept.file}") from error
    finally:
        logger.removeHandler(kept)
        logger.setLevel(before)


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


class Printer(Callback):
    """Prints a line a round; with a bar that moves with every client, where there is one."""

    def __init__(self, console: Console, bar: Progress | None = None) -> None:
        self._console = console
        self._bar = bar or Progress(disable=True)
        self._task = self._bar.add_task("", total=None, now="", visible=False)
        self._method, self._rounds, self._visits, self._bytes = "", 0, 0, 0
        self._groups: dict[ClientId, str] = {}

    def on_note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_start(self, method: str, rounds: int, done: int, visits: int) -> None:
        self._method, self._rounds, self._visits, self._bytes, self._groups = method, rounds, visits, 0, {}
        self._start_bar(self._round(done + 1), rounds * visits, done * visits)

    def on_client(self, client: ClientId, loss: float) -> None:
        self._bar.update(self._task, advance=1, now=f"{client} loss {loss:.3f}")

    def on_round(self, record: RoundRecord) -> None:
        self._bytes += record.bytes_up + record.bytes_down
        self._bar.update(self._task, completed=record.round * self._visits, description=self._round(record.round + 1))
        self.on_note(f"{self._method} {round_line(record, self._rounds, self._bytes)}")
        groups = {client: name for client, name in record.groups.items() if name != EVERYBODY}
        if groups != self._groups:
            self._groups = groups
            told = [f"{name} ({listed(members)})" for name, members in sorted(members_of(groups).items())]
            self.on_note(f"{self._method} round {record.round}: groups {listed(told)}")

    def _round(self, number: int) -> str:
        return f"{self._method} round {min(number, self._rounds)}/{self._rounds}"

    def on_evaluation(self, clients: int) -> None:
        self._start_bar("evaluation", clients, 0)

    def on_evaluated(self, client: ClientId) -> None:
        self._bar.update(self._task, advance=1, now=client)

    def _start_bar(self, name: str, total: int, done: int) -> None:
        self._bar.reset(self._task, total=total, completed=done, visible=total > done)
        self._bar.update(self._task, description=name, now="")


def round_line(record: RoundRecord, rounds: int, n_bytes: int) -> str:
    """Round, clients, loss, validation accuracy and bytes, in one line."""
    parts = [f"round {record.round}/{rounds}", f"clients {len(record.clients)}"]
    if record.losses:
        parts.append(f"loss {record.loss:.3f}")
    parts += [f"validation {name} {with_unit(value, name)}" for name, value in record.validation.items()]
    if record.epsilon is not None:
        parts.append(f"epsilon {record.epsilon:.3g}")
    parts.append(f"up {size(record.bytes_up)}  down {size(record.bytes_down)}  so far {size(n_bytes)}")
    parts += [f"FAILED {failure.client}: {failure.stage}: {failure.reason}" for failure in record.failures]
    return "  ".join(parts)


@contextmanager
def progress_of(console: Console) -> Iterator[Callback]:
    """Lines and a bar in a terminal, lines alone elsewhere."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} clients"),
        TimeRemainingColumn(), TextColumn("{task.fields[now]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield Printer(console, bar)
