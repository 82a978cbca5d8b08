"""A real network on this machine, for tests: the commands that the documents tell people to run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from capfl.engines.flower.processes import free_port
from capfl.engines.flower.server_app import name_of

WITHIN = 600.0  # seconds for anything to happen, on a machine that has much else to do


def capfl(*words: object) -> list[str]:
    return [sys.executable, "-m", "capfl", "flower", *map(str, words)]


def wait_for(what: Callable[[], object], within: float, about: str) -> None:
    """Wait until something is true; no test depends on how long that takes."""
    by = time.monotonic() + within
    while not what():
        assert time.monotonic() < by, f"{about}: not within {within:.0f} s"
        time.sleep(0.1)


@dataclass
class Started:
    """A command that was started, and its output."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self, within: float) -> int:
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {within:.0f} s:\n{self.said()}") from None


def end(started: Sequence[Started]) -> None:
    for one in started:
        one.process.terminate()
    for one in started:
        try:
            one.process.wait(40)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


def child_of(parent: Started | psutil.Process, words: str) -> psutil.Process:
    """The one child of a process whose command line has these words, as soon as it is there."""
    process = parent if isinstance(parent, psutil.Process) else psutil.Process(parent.process.pid)
    found: list[psutil.Process] = []

    def look() -> bool:
        with contextlib.suppress(psutil.Error):  # a child that ends meanwhile
            found[:] = [child for child in process.children() if words in " ".join(child.cmdline())]
        return len(found) == 1

    wait_for(look, WITHIN, words)
    return found[0]


@dataclass
class Network:
    """A server and the nodes that a test starts. ``end(started)`` ends them."""

    folder: Path
    port: int = field(default_factory=free_port)
    started: list[Started] = field(default_factory=list)
    nodes: dict[str, Started] = field(default_factory=dict)
    server: Started | None = None

    def start(self, name: str, *words: object) -> Started:
        log = self.folder / f"{name}.out"
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                capfl(*words), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=self.folder,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        self.started.append(Started(process, log))
        return self.started[-1]

    def start_server(self, clients: Iterable[str]) -> Started:
        keys = self.folder / "keys"
        assert subprocess.run(capfl("keys", keys, "--nodes", ",".join(clients)), check=False).returncode == 0
        self.server = server = self.start("server", "server", "--port", self.port, "--home", self.home, "--keys", keys)
        wait_for(lambda: "server ready" in server.said() or server.process.poll() is not None, WITHIN, "the server")
        assert "server ready" in server.said(), server.said()
        return server

    @property
    def home(self) -> Path:
        return self.folder / "server"

    def state(self, client: str) -> Path:
        return self.folder / "nodes" / client

    def proof(self, name: str) -> list[object]:
        """What a node shows of who it is, and knows the server by."""
        place = self.folder / "keys"
        return ["--certificate", place / "server.crt", "--key", place / "nodes" / f"{name}.key"]

    def start_node(
        self, client: str, data: Path, *how: object, port: int | None = None, key: str = "", state: Path | None = None
    ) -> Started:
        """A node of a client; with another's ``key``, or any other proof of who it is."""
        server = f"127.0.0.1:{port or self.port}"
        given = ["--server", server, "--client", client, "--data", data, "--state", state or self.state(client)]
        node = self.start(f"node-{client}{key}", "node", *given, *(how or self.proof(key or client)))
        if state is None:
            self.nodes[client] = node
        return node

    def personal(self, clients: Iterable[str], out: Path) -> dict[str, Path]:
        """What clients have of a run on their own disks."""
        return {client: self.state(client) / "runs" / name_of(out) for client in clients}

    def run(self, name: str, *words: object) -> Started:
        return self.start(name, "run", "--home", self.home, *words)
