"""Work for one client after the other, in this process or in several at once that are forks of it.

A fork shares all memory with the process that it was made from until one of the two writes to it: the frozen base and
the data are there once, whatever the number of workers. They are forked when there is work and end with it, so that
what they know is always what this process knows. Linux only: elsewhere forks of a process with threads are not safe.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self, TypeVar

import torch

from capfl.errors import ConfigError, WorkerError

Given = TypeVar("Given")
Result = TypeVar("Result")
Work = Callable[[str, Given], Result]
"""(client, what it is given) -> what comes of it, which ``pickle`` must take."""

AHEAD = 2  # clients for each worker that are asked for or wait to be handed on: results in memory stay few


class Workers:
    """The processes that work for clients. As a context manager it leaves none, however its block ends.

    Attributes:
        number: 1: this process does it itself. More: so many forks of it.
        counts: numbers that work adds to, by name; they are summed up here, whoever did it.
    """

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.counts: Counter[str] = Counter()
        self._crews: list[list[_Worker]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for crew in self._crews:
            for worker in crew:
                worker.stop()

    def each(
        self, work: Work[Given, Result], clients: Sequence[str], given: Callable[[str], Given]
    ) -> Iterator[tuple[str, Result | WorkerError]]:
        """The result of the work for each client, in their order; a WorkerError where the process died that did it.

        Args:
            given: what the work is given, which is asked for here, when its turn comes.

        Raises:
            BaseException: what ``work`` or ``given`` raise. Nothing more is done then, and no worker is left.
        """
        if self.number == 1:
            for client in clients:
                yield client, work(client, given(client))
            return
        done: dict[str, Result | WorkerError] = {}
        waiting, handed_on = list(reversed(clients)), 0
        crew: list[_Worker] = []
        self._crews.append(crew)
        try:
            while handed_on < len(clients):
                begun = len(clients) - len(waiting)
                while waiting and begun < handed_on + AHEAD * self.number:
                    worker = next((one for one in crew if one.client is None), None)
                    if worker is None and len(crew) == self.number:
                        break
                    if worker is None:
                        crew.append(worker := _Worker.started(work, self.counts, [one.pipe for one in crew]))
                    client = waiting.pop()
                    begun += 1
                    worker.begin(client, given(client), self.counts)
                for worker in _ready(crew):
                    client, found = worker.end(self.counts)
                    if isinstance(found, WorkerError):
                        crew.remove(worker)
                    done[client] = found
                while handed_on < len(clients) and clients[handed_on] in done:
                    client = clients[handed_on]
                    handed_on += 1
                    yield client, done.pop(client)
        finally:
            for worker in crew:
                worker.stop()
            self._crews = [other for other in self._crews if other is not crew]

    def all(self, work: Callable[[str], Result], clients: Sequence[str]) -> list[Result]:
        """The result for each client. Raises WorkerError: a worker died; and what ``work`` raises."""
        found: list[Result] = []
        for _, one in self.each(lambda client, _: work(client), clients, lambda client: None):
            if isinstance(one, WorkerError):
                raise one
            found.append(one)
        return found


def check_workers(number: int, device: str) -> None:
    """Raises ConfigError: there cannot be several workers here, or not with a base on this device."""
    if number == 1:
        return
    problem = None
    if sys.platform != "linux":
        problem = f"processes are forked, which is safe on Linux only, and this is {sys.platform}"
    elif device != "cpu":
        problem = f"a base on {device} cannot be shared by forked processes"
    elif multiprocessing.current_process().daemon:
        problem = "this process is daemonic (multiprocessing), and may start no others"
    if problem:
        instead = ", or model.device to cpu" if device != "cpu" else ""
        raise ConfigError(f"runtime.workers = {number}: {problem}; set runtime.workers to 1{instead}")


# -- this side ---------------------------------------------------------------------------------------------


@dataclass
class _Worker:
    """A fork, and what it is doing."""

    process: BaseProcess
    pipe: Connection
    client: str | None = None

    @staticmethod
    def started(work: Work[Any, Any], counts: Counter[str], others: Sequence[Connection]) -> _Worker:
        """A new fork.

        Args:
            counts: what the work adds to.
            others: this side's ends of its siblings' pipes.

        Raises:
            WorkerError: there is no room for it.
        """
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        arguments = work, counts, there, [*others, here], torch.get_num_threads()
        process = fork.Process(target=_serve, args=arguments, daemon=True)

        def start() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the fork says that it ignores it
            process.start()

        try:  # in a new thread, which has no threads of OpenMP's: a fork would wait for them, and does not have them
            with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
                warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 on: there are threads
                thread.submit(start).result()
        except OSError as error:
            raise WorkerError(f"cannot start a worker: {error.strerror}; use fewer runtime.workers") from error
        there.close()
        return _Worker(process, here)

    def begin(self, client: str, given: object, counts: Counter[str]) -> None:
        self.client = client
        with suppress(OSError):  # it is dead, as ``end`` will find
            self.pipe.send((client, given, counts))

    def end(self, counts: Counter[str]) -> tuple[str, Any]:
        """The client, and what came of it. Raises what the work has raised."""
        client, self.client = self.client, None
        assert client is not None
        try:
            raised, found, more = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)  # it says how it ended, unless it hangs without a pipe
            self.stop()
            return client, WorkerError(_ended(self.process.exitcode))
        counts.update(more)
        if raised:
            raise found
        return client, found

    def stop(self) -> None:
        """End it, whatever it is doing."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _ready(crew: Sequence[_Worker]) -> list[_Worker]:
    """Waits for workers that are done, or dead."""
    busy = {worker.pipe: worker for worker in crew if worker.client is not None}
    return [busy[pipe] for pipe in wait(busy) if isinstance(pipe, Connection)]


def _ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its worker ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "; a system that has no memory left does that: use fewer runtime.workers" if name == "SIGKILL" else ""
    return f"its worker was killed by {name}{hint}"


# -- the fork ----------------------------------------------------------------------------------------------


def _serve(
    work: Work[Any, Any], counts: Counter[str], pipe: Connection, others: Sequence[Connection], threads: int
) -> None:
    """Work until there is no more, or until whoever started this is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one, which ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for other in others:
        other.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # their threads have not been forked
    _leave_the_display()
    gc.freeze()  # going through memory that is shared would copy it
    while True:
        try:
            client, given, before = pipe.recv()
        except EOFError:
            return
        counts.clear()
        counts.update(before)
        try:
            raised, found = False, work(client, given)
        except BaseException as error:
            raised, found = True, error
        more = Counter({name: n - before[name] for name, n in counts.items()})
        try:
            pipe.send((raised, found, more))
        except OSError:
            return
        except Exception as error:  # it cannot be pickled
            said = "".join(traceback.format_exception(found)) if raised else f"{type(error).__name__}: {error}"
            pipe.send((True, RuntimeError(said), more))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _leave_the_display() -> None:
    """Write past a progress display: a thread that has not been forked may have its lock."""

    def plain(stream: Any) -> Any:
        return getattr(stream, "rich_proxied_file", stream)

    sys.stdout, sys.stderr = plain(sys.stdout), plain(sys.stderr)
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(plain(handler.stream))
