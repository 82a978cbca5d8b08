"""The server, where nodes and runs meet: Flower's SuperLink, the executor of its runs, and the nodes it lets in."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capfl.engines.flower.processes import Process, environment, internal, run_until_stopped, script
from capfl.engines.flower.runs import Connection, ServerError
from capfl.errors import ConfigError
from capfl.files import write_atomically

READY_WITHIN = 60.0  # seconds
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # a host to listen on -> how the machine itself reaches it

Say = Callable[[str], None]


@dataclass(frozen=True)
class Server:
    """A server on this machine. ``keys`` is a folder of ``capfl flower keys``."""

    home: Path
    host: str
    port: int
    keys: Path

    @property
    def address(self) -> str:
        """Where its own machine reaches it."""
        return f"{ANYWHERE.get(self.host, self.host)}:{self.port}"

    def processes(self) -> list[Process]:
        """The SuperLink, and the executor that starts a process for every run.

        The executor is not the SuperLink's child and the SuperLink's state is a file, so that a run outlives its death.

        Raises:
            ConfigError: certificates are missing.
        """
        inside, keys = environment(self.home), self.keys
        if missing := [name for name in ("server.crt", "server.key", "ca.crt") if not (keys / name).is_file()]:
            raise ConfigError(f"{keys}: no {', '.join(missing)}; make them with: capfl flower keys {keys}")
        server = ["--host", self.host, "--port", str(self.port), "--database", str(self.home / "state.db")]
        server += ["--ssl-certfile", str(keys / "server.crt"), "--ssl-keyfile", str(keys / "server.key")]
        server += ["--ssl-ca-certfile", str(keys / "ca.crt"), "--enable-supernode-auth", "--isolation", "process"]
        runs = ["--runtime-api-address", self.address, "--root-certificates", str(keys / "ca.crt")]
        runs += ["--parent-pid", str(os.getpid())]
        return [
            Process("server", internal("server", *server), inside, self.home / "server.log"),
            Process("runs", [script("flower-superexec"), *runs], inside, self.home / "runs.log"),
        ]

    def is_ready(self) -> bool:
        """Does it answer?"""
        trust = ssl.create_default_context(cafile=self.keys / "ca.crt")
        try:
            with urllib.request.urlopen(f"https://{self.address}/health", timeout=2, context=trust) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def let_in(self, say: Say) -> None:
        """Have the nodes whose public keys are in ``keys``, and no others, as nodes that may come."""
        record, flower = self.home / "nodes.json", Connection(self.home)
        known: dict[str, dict[str, str]] = json.loads(record.read_text()) if record.is_file() else {}
        wanted = {path.stem: path for path in sorted((self.keys / "nodes").glob("*.pub"))}
        prints = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in wanted.items()}
        for name in sorted(known):
            if known[name]["key"] != prints.get(name):
                flower.ask("supernode", "unregister", known.pop(name)["node"])
                say(f"node {name}: its key is no longer let in")
                write_atomically(record, json.dumps(known).encode())
        for name in sorted(wanted.keys() - known.keys()):
            answer = flower.ask("supernode", "register", str(wanted[name]), "--name", name)
            known[name] = {"node": str(answer["node-id"]), "key": prints[name]}
            say(f"node {name}: let in")
            write_atomically(record, json.dumps(known).encode())

    def serve(self, say: Say) -> None:
        """Run until SIGTERM or Ctrl-C.

        Raises:
            ServerError: it does not answer, or does not register a node.
            ConfigError: certificates are missing.
        """
        processes = self.processes()
        Connection(self.home).write(self.address, self.keys / "ca.crt")
        by, ready = time.monotonic() + READY_WITHIN, False

        def step() -> None:
            nonlocal ready
            if not ready and self.is_ready():
                self.let_in(say)
                say(f"server ready at {self.address}")
                ready = True
            if not ready and time.monotonic() > by:
                raise ServerError(f"the server does not answer at {self.address}; see {self.home / 'server.log'}")

        run_until_stopped(processes, say, step)
