"""A node: what a site runs. Flower's SuperNode, and the process that does the site's part of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from capfl.engines.flower.processes import Process, environment, free_port, internal, run_until_stopped
from capfl.errors import ConfigError

HINTS = {
    "code: 2004": "the server does not let it in: its key is not registered there, or a node with this key is there "
    "already; one that was killed counts as there for up to a minute",
    "CERTIFICATE_VERIFY_FAILED": "the server's certificate is not for this address, or not of the authority of --ca",
}


@dataclass(frozen=True)
class Node:
    """A node of one client.

    Args:
        server: its address, HOST:PORT.
        data: the client's own file, which nobody else sees.
        state: folder of what it remembers from round to round, and of its adapters.
        authority: certificate that the server's is checked against.
        key: the node's own, of ``capfl flower keys``.
        settings: what the site decides for itself, by the keys of the config.
    """

    client: str
    server: str
    data: Path
    state: Path
    authority: Path
    key: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def processes(self) -> list[Process]:
        """The SuperNode, and the worker beside it.

        Raises:
            ConfigError: a file is missing, or has a name that cannot be handed on.
        """
        for path in (self.data, self.authority, self.key):
            if not path.is_file():
                raise ConfigError(f"{path}: there is no such file")
        given = {"client": self.client, "data": str(self.data.absolute()), "state": str(self.state.absolute())}
        given |= {"settings": json.dumps(dict(self.settings))} if self.settings else {}
        if wrong := [text for text in given.values() if "'" in text or "\n" in text]:
            raise ConfigError(f"{wrong[0]!r}: quotes and line ends cannot be handed on to Flower; rename it")
        port, inside = free_port(), environment(self.state / "flower")
        node = ["--superlink", self.server, "--host", "127.0.0.1", "--port", str(port), "--isolation", "process"]
        node += ["--root-certificates", str(self.authority), "--auth-supernode-private-key", str(self.key)]
        node += ["--node-config", " ".join(f"{name}='{text}'" for name, text in given.items())]
        supernode = Process(
            f"node {self.client}", internal("node", *node), inside, self.state / "node.log", hints=HINTS
        )
        # a SuperNode waits for ever for a reply whose sender has ended while it was sending
        worker = Process(
            f"worker {self.client}", internal("worker", f"127.0.0.1:{port}"), inside, self.state / "worker.log",
            takes=(supernode,),
        )  # fmt: skip
        return [supernode, worker]

    def serve(self, say: Callable[[str], None]) -> None:
        """Run until SIGTERM or Ctrl-C.

        Raises:
            DataError: the data cannot be read.
            ConfigError: as ``processes``.
        """
        processes = self.processes()
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # for a moment, because it loads torch
            other.submit(_read, self.data).result()
        run_until_stopped(processes, say)


def _read(data: Path) -> None:
    from capfl.data import read_file

    read_file(data)
