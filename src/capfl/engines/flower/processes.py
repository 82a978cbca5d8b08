"""Processes of a server or a node: started together, started again when they end, and stopped by their ids."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from capfl import files
from capfl.engines.flower.addresses import direct
from capfl.errors import printable

AGAIN = 5.0  # seconds until a process that has ended is started again
GRACE = 10.0  # seconds that processes have to end when they are told to
PAUSE = 0.2  # seconds between two looks at them
LAST_LINES = 6  # of the output of one that has ended
HOUR = 3600.0  # seconds
AT_ONCE = 2**16  # bytes of a log that are read at once
LONGEST = 50 * 2**20  # bytes of a log
TELL = "capfl: "  # how lines of a log begin that an operator is told at once
PRIVATE = 0o077  # the umask of every process: what it writes is for its owner alone

Say = Callable[[str], None]
Note = Callable[..., None]


def tell(text: str) -> None:
    """Have the operator of this process told at once: its parent says the line, where its ``Process.tells``."""
    print(f"{TELL}{text}", flush=True)


def environment(home: Path, *hosts: str) -> dict[str, str]:
    """The environment of every Flower process: a home of its own, nothing looked up on the Internet, nothing installed.

    Args:
        hosts: to which requests go past a proxy, as they do to this machine.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return (
        os.environ
        | direct(os.environ, *hosts)
        | {
            "PATH": path,  # where Flower's commands are
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "PYTHONUNBUFFERED": "1",
        }
    )


def internal(role: str, *arguments: str) -> list[str]:
    """The command of a process of ``capfl.engines.flower.internals``."""
    return [sys.executable, "-m", "capfl.engines.flower.internals", role, *arguments]


def new_secret(home: Path) -> Path:
    """A file with a new secret, by which processes of one owner know each other on this machine's ports.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = home / "secret"
    with files.naming(path, files.AGAIN):
        path.unlink(missing_ok=True)  # whoever had opened an older one has no part in this one
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
    return path


@dataclass
class Process:
    """One process of several that run at once. Its output is appended to a file.

    Args:
        hints: what words in its output mean, for when it ends; of a line, the first that it has.
        tells: are lines of its output that begin with ``TELL`` said at once, without that beginning?
        warns: what is said at once, and not again for an hour, of words in its output.
        takes: others that are ended with it when it ends by itself, and start again with it.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    hints: Mapping[str, str] = field(default_factory=dict)
    takes: Sequence[Process] = ()
    tells: bool = False
    warns: Mapping[str, str] = field(default_factory=dict)
    running: subprocess.Popen[bytes] | None = field(default=None, init=False)
    due: float = field(default=0.0, init=False)  # when it is to be started, on the monotonic clock
    said: int = field(default=0, init=False)  # bytes in its log before it was started
    quiet: dict[str, float] = field(default_factory=dict, init=False)  # warnings, and until when they are not repeated
    told: int = field(default=0, init=False)  # bytes in its log of which nothing more is to be said at once

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
            self.said = self.told = output.tell()
            # a session of its own: Ctrl-C is for us alone, and whatever it starts can be ended with it
            self.running = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, umask=PRIVATE,
            )  # fmt: skip

    def ended(self) -> int | None:
        """The exit status of a process that has ended, once: then nothing that it started is left. None otherwise."""
        if self.running is None:
            return None
        # not yet reaped, so that nobody else has the number of its group
        if os.waitid(os.P_PID, self.running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self.send(signal.SIGKILL)
        status = self.running.wait()
        self.running, self.due = None, time.monotonic() + AGAIN
        return status

    def end(self, by: float) -> None:
        """Wait for its end, and end it at a time of the monotonic clock."""
        while self.running is not None and self.ended() is None:
            if time.monotonic() > by:
                self.send(signal.SIGKILL)
            time.sleep(0.05)

    def last_words(self) -> list[str]:
        """The last lines of its output; or what they mean, if that is known."""
        with open(self.log, "rb") as file:
            file.seek(max(self.said, self.log.stat().st_size - 4096))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return (
            meanings(lines, self.hints) or [printable(line) for line in lines if "INFO" not in line[:12]][-LAST_LINES:]
        )

    def news(self) -> list[str]:
        """What it has said since the last time that is to be said at once."""
        if not (self.tells or self.warns) or self.running is None or self.log.stat().st_size == self.told:
            return []
        if self.log.stat().st_size < self.told:
            self.said = self.told = 0  # somebody has cut it
        with open(self.log, "rb") as file:
            file.seek(self.told)
            lines = file.read(AT_ONCE).splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n") and len(lines[-1]) < AT_ONCE:
            del lines[-1]  # which is still being written
        self.told += sum(map(len, lines))
        texts = [line.decode(errors="replace").rstrip("\n") for line in lines]
        told = [printable(text.removeprefix(TELL)) for text in texts if self.tells and text.startswith(TELL)]
        for warning in meanings(texts, self.warns):
            if time.monotonic() >= self.quiet.get(warning, 0.0):
                self.quiet[warning] = time.monotonic() + HOUR
                told.append(f"{self.name}: {warning}")
        return told

    def shorten(self) -> None:
        """Begin its log anew when it has become long; the part before goes to a file ``.1`` beside it."""
        if self.running is not None and self.log.stat().st_size > LONGEST:
            with suppress(OSError):  # a full disk: it is tried again
                shutil.copy(self.log, self.log.with_name(f"{self.log.name}.1"))
            os.truncate(self.log, 0)  # whoever writes to it appends, and goes on at the beginning
            self.said = self.told = 0

    def send(self, number: int) -> None:
        """Send a signal to it and to whatever it has started."""
        if self.running is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.running.pid, number)


def meanings(lines: Sequence[str], hints: Mapping[str, str]) -> list[str]:
    """What lines mean by the first of the words in each that is known, each meaning once."""
    meant = [next((hint for word, hint in hints.items() if word in line), "") for line in lines]
    return list(dict.fromkeys(filter(None, meant)))


def supervise(
    processes: Sequence[Process],
    say: Say,
    step: Callable[[], None],
    note: Note = lambda event, **values: None,
) -> None:
    """Keep processes running until SIGTERM or Ctrl-C comes, then end them all, the last one first.

    Args:
        step: of the caller's, between two looks at them.
        note: is told what happens, see ``Events``.
    """
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    said = ""
    try:
        while not came:
            for process in processes:
                for news in process.news():
                    say(news)
                    note("said", process=process.name, text=news)
                process.shorten()
                if (status := process.ended()) is not None:
                    words = "\n  ".join([f"see {process.log}", *process.last_words()])
                    what = f"{process.name} ended with {status}, starts again every {AGAIN:.0f} s; {words}"
                    if what != said:  # once, not every few seconds
                        say(what)
                    said = what
                    note("ended", process=process.name, status=status)
                    end_all(process.takes)
                if process.running is None and time.monotonic() >= process.due:
                    process.start()
                    note("started", process=process.name, pid=process.running.pid if process.running else 0)
            step()
            time.sleep(PAUSE)
    finally:
        end_all(processes)
        note("stopped", signal=came[0] if came else 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def end_all(processes: Sequence[Process]) -> None:
    """End processes, the last one first; those that have not ended within ``GRACE`` seconds are killed."""
    for process in reversed(processes):
        process.send(signal.SIGTERM)
    by = time.monotonic() + GRACE
    for process in reversed(processes):
        process.end(by)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
