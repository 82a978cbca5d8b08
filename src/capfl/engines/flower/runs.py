"""Runs on a server: started, followed and stopped from its own machine, by Flower's own commands."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from capfl.config import Config, to_toml
from capfl.config.load import dated
from capfl.engines.flower.addresses import parted
from capfl.engines.flower.processes import Say, environment
from capfl.errors import CapflError, printable
from capfl.files import write_atomically

APPS = {  # of a run; their code is the capfl that is installed on every machine
    "serverapp": "capfl.engines.flower.server_app:app",
    "clientapp": "capfl.engines.flower.client_app:app",
}
NAME = "capfl"  # of the connection, in Flower's own configuration
WITHIN = 60.0  # seconds for a command of Flower's
PAUSE = 2.0  # seconds between two looks at a run
LOST = 300.0  # seconds for which a server may be away while a run is followed
SAID = "error: "  # how what the run's own process says of an error begins
RAISED = re.compile(r"^(\x1b\[\d+m)?ERROR\b.* ServerApp raised an exception")  # and what follows it in Flower's log
FLOWERS_OWN = re.compile(r"^(\x1b\[\d+m)?(INFO|DEBUG)\b|^Using SuperLink: |^Successfully installed ")  # in a run's log


class ServerError(CapflError):
    """The server cannot be reached, or refuses a command. Says what Flower said."""


@dataclass(frozen=True)
class Connection:
    """The connection to the server whose folder ``home`` is."""

    home: Path

    def write(self, address: str, authority: Path) -> None:
        """Leave address and authority's certificate of the server in its folder."""
        own = {"address": address, "root-certificates": str(authority)}
        text = tomli_w.dumps({"superlink": {"default": NAME, NAME: own}})
        write_atomically(self.home / "config.toml", text.encode())

    def require(self) -> None:
        """Raises ServerError: nobody has started a server here."""
        if not (self.home / "config.toml").is_file():
            raise ServerError(f"{self.home}: no server was ever started here; start one with: capfl flower server")

    def command(self, *arguments: str) -> list[str]:
        """A ``flwr`` command to this server. Raises ServerError as ``require``."""
        self.require()
        return ["flwr", *arguments, NAME]

    def environment(self) -> dict[str, str]:
        """The environment of a ``flwr`` command: requests to the server, on this machine, go past a proxy."""
        address = tomllib.loads((self.home / "config.toml").read_text())["superlink"][NAME]["address"]
        return environment(self.home, parted(address)[0])

    def ask(self, *arguments: str) -> dict[str, Any]:
        """The answer to a ``flwr`` command.

        Raises:
            ServerError: it fails.
        """
        command, words = self.command(*arguments), " ".join(arguments[:2])
        try:
            done = subprocess.run(
                [*command, "--format", "json"], env=self.environment(), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=WITHIN, check=False,
            )  # fmt: skip
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"flwr {words}: no answer within {WITHIN:.0f} s") from error
        except ValueError as error:
            raise ServerError(f"flwr {words}: {(done.stderr or done.stdout).strip()}") from error
        if not answer.get("success"):
            said = str(answer.get("error-message", answer))
            raise ServerError(f"flwr {words}: {said.splitlines()[-1] if said else 'failed'}")
        return answer


def submit(server: Connection, config: Config, again: bool, answer: float, node: float) -> int:
    """Start a run, or go on with one, and return Flower's number for it.

    Args:
        answer, node: the run's patience with a reply and with a missing node, in seconds.

    Raises:
        ServerError: the server does not take it.
    """
    given = {"config": to_toml(dated(config)), "resume": again, "answer": answer, "node": node}
    app = {"publisher": "capfl", "components": APPS, "config": given}
    project = {"name": "capfl-run", "version": "1.0.0", "description": "A run of capfl", "license": "MIT"}
    with tempfile.TemporaryDirectory() as folder:
        text = tomli_w.dumps({"project": project | {"dependencies": []}, "tool": {"flwr": {"app": app}}})
        (Path(folder) / "pyproject.toml").write_text(text, encoding="utf-8")
        return int(server.ask("run", folder)["run-id"])


def follow(server: Connection, number: int, say: Say) -> bool:
    """Say what a run says until it ends. Has it succeeded?

    Raises:
        ServerError: the server was away for too long, or does not know the run.
    """
    said, since, known = 0, time.monotonic(), False
    while True:
        try:
            (run,) = server.ask("list", f"--run-id={number}")["runs"]
            status, since = str(run["status"]), time.monotonic()
        except ServerError:
            if time.monotonic() - since > LOST:
                raise
            status = "unknown"
        for line in itertools.islice(_log(server, number), said, None):
            said += 1
            known |= line.startswith(SAID)
            say(printable(line))
        if status.startswith("finished"):
            if status != "finished:completed":
                say(printable(f"run {number} {status}" + ("" if known else f": {run['status-details']}")))
            return status == "finished:completed"
        time.sleep(PAUSE)


def stop(server: Connection, number: int) -> None:
    """End a run. Raises ServerError."""
    server.ask("stop", str(number))


def _log(server: Connection, number: int) -> Iterator[str]:
    """The lines of a run's log but for Flower's own, until the run ends or the server is away.

    Where the run has said what is wrong, Flower's traceback, which would say it again, is left out.
    """
    process = subprocess.Popen(
        server.command("log", str(number), "--stream"), env=server.environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    known = False
    try:
        for line in process.stdout:
            known |= line.startswith(SAID)
            if known and RAISED.match(line):
                break
            if line.strip() and not FLOWERS_OWN.match(line):
                yield line.rstrip("\n")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
