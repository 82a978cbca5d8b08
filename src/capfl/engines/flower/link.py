"""The link, where nodes and runs meet: Flower's SuperLink, the executor of its runs, and the nodes that it lets in."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from capfl.engines.flower.connection import Connection, LinkError
from capfl.engines.flower.processes import PAUSE, Process, environment, pinned, script, supervise, told_to_stop
from capfl.errors import ConfigError
from capfl.files import write_atomically

READY_WITHIN = 60.0  # seconds
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # a host to listen on -> how the machine itself reaches it

Say = Callable[[str], None]


@dataclass(frozen=True)
class Link:
    """A link on this machine. ``keys`` is a folder of ``capfl flower keys``, or None for plain text and any node."""

    home: Path
    host: str
    port: int
    keys: Path | None

    @property
    def address(self) -> str:
        """Where its own machine reaches it."""
        return f"{ANYWHERE.get(self.host, self.host)}:{self.port}"

    def processes(self) -> list[Process]:
        """The link proper, and the executor that starts a process for every run.

        The executor is not the link's child and the link's state is a file, so that a run outlives the link's death.
        """
        inside = environment(self.home)
        link = ["--host", self.host, "--port", str(self.port), "--database", str(self.home / "state.db")]
        link += ["--isolation", "process", *self._certificates()]
        runs = ["--runtime-api-address", self.address, "--parent-pid", str(os.getpid())]
        runs += ["--root-certificates", str(self.keys / "ca.crt")] if self.keys else ["--insecure"]
        return [
            Process("link", pinned("link", *link), inside, self.home / "link.log"),
            Process("runs", [script("flower-superexec"), *runs], inside, self.home / "runs.log"),
        ]

    def _certificates(self) -> list[str]:
        if self.keys is None:
            return ["--insecure"]
        files = {"--ssl-certfile": "link.crt", "--ssl-keyfile": "link.key", "--ssl-ca-certfile": "ca.crt"}
        if missing := [name for name in files.values() if not (self.keys / name).is_file()]:
            raise ConfigError(f"{self.keys}: no {', '.join(missing)}; make them with: capfl flower keys {self.keys}")
        named = [word for flag, name in files.items() for word in (flag, str(self.keys / name))]
        return [*named, "--enable-supernode-auth"]

    def is_ready(self) -> bool:
        """Does it answer?"""
        trust = ssl.create_default_context(cafile=self.keys / "ca.crt") if self.keys else None
        scheme = "https" if self.keys else "http"
        try:
            with urllib.request.urlopen(f"{scheme}://{self.address}/health", timeout=2, context=trust) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def let_in(self, say: Say) -> None:
        """Have the nodes whose public keys are in ``keys``, and no others, as nodes that may come."""
        if self.keys is None:
            return
        record, link = self.home / "nodes.json", Connection(self.home)
        known: dict[str, dict[str, str]] = json.loads(record.read_text()) if record.is_file() else {}
        wanted = {path.stem: path for path in sorted((self.keys / "nodes").glob("*.pub"))}
        prints = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in wanted.items()}
        for name in sorted(known):
            if known[name]["key"] != prints.get(name):
                link.ask("supernode", "unregister", known.pop(name)["node"])
                say(f"node {name}: its key is no longer let in")
                write_atomically(record, json.dumps(known).encode())
        for name in sorted(wanted.keys() - known.keys()):
            answer = link.ask("supernode", "register", str(wanted[name]), "--name", name)
            known[name] = {"node": str(answer["node-id"]), "key": prints[name]}
            say(f"node {name}: let in")
            write_atomically(record, json.dumps(known).encode())

    def serve(self, say: Say) -> None:
        """Run until SIGTERM or Ctrl-C.

        Raises:
            LinkError: it does not answer, or does not register a node.
            ConfigError: certificates are missing.
        """
        Connection(self.home).write(self.address, self.keys / "ca.crt" if self.keys else None)
        by, ready = time.monotonic() + READY_WITHIN, False
        with told_to_stop() as stop, closing(supervise(self.processes(), say)) as steps:
            for _ in steps:
                if stop():
                    return
                if not ready and self.is_ready():
                    self.let_in(say)
                    say(f"link ready at {self.address}")
                    ready = True
                if not ready and time.monotonic() > by:
                    raise LinkError(f"the link does not answer at {self.address}; see {self.home / 'link.log'}")
                time.sleep(PAUSE)
