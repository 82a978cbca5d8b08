"""A node: what a site runs. Flower's SuperNode, and the process that does the site's part of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from capfl.engines.flower.processes import PAUSE, Process, environment, free_port, pinned, supervise, told_to_stop
from capfl.errors import ConfigError

HINTS = {
    "code: 2004": "the link does not let it in: its key is not registered there, or a node with this key is there "
    "already; one that was killed counts as there for up to a minute",
    "code: 2001": "the link does not let it in: it lets in nodes with keys only; give --key",
    "CERTIFICATE_VERIFY_FAILED": "the link's certificate is not for this address, or not of the authority of --ca",
}


@dataclass(frozen=True)
class Node:
    """A node of one client.

    Args:
        link: address of the link, HOST:PORT.
        data: the client's own JSONL file, which nobody else sees.
        state: folder of what it remembers from round to round, and of its adapters.
        authority: certificate that the link's is checked against; None: plain text.
        key: the node's own, of ``capfl flower keys``; None: the link lets in any node.
        keep_model: one process answers all messages; else Flower starts one for each.
        settings: what the site decides for itself, by the keys of the config.
    """

    client: str
    link: str
    data: Path
    state: Path
    authority: Path | None
    key: Path | None
    keep_model: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)

    def processes(self) -> list[Process]:
        """The SuperNode, and the worker beside it.

        Raises:
            ConfigError: a file is missing, or has a name that cannot be handed on.
        """
        for path in (self.data, self.authority, self.key):
            if path is not None and not path.is_file():
                raise ConfigError(f"{path}: there is no such file")
        if self.key is not None and self.authority is None:
            raise ConfigError("--key: a key over plain text proves nothing; give --ca as well")
        given = {"client": self.client, "data": str(self.data.absolute()), "state": str(self.state.absolute())}
        given |= {"settings": json.dumps(dict(self.settings))} if self.settings else {}
        if wrong := [text for text in given.values() if "'" in text or "\n" in text]:
            raise ConfigError(f"{wrong[0]!r}: quotes and line ends cannot be handed on to Flower; rename it")
        port, inside = free_port(), environment(self.state / "flower")
        node = ["--superlink", self.link, "--host", "127.0.0.1", "--port", str(port)]
        node += ["--root-certificates", str(self.authority)] if self.authority else ["--insecure"]
        node += ["--auth-supernode-private-key", str(self.key)] if self.key else []
        node += ["--node-config", " ".join(f"{name}='{text}'" for name, text in given.items())]
        node += ["--isolation", "process" if self.keep_model else "subprocess"]
        found = [Process(f"node {self.client}", pinned("node", *node), inside, self.state / "node.log", HINTS)]
        if self.keep_model:
            # a SuperNode waits for ever for a reply whose sender has ended while it was sending
            work, log = pinned("work", f"127.0.0.1:{port}"), self.state / "worker.log"
            found.append(Process(f"worker {self.client}", work, inside, log, takes=tuple(found)))
        return found

    def serve(self, say: Callable[[str], None]) -> None:
        """Run until SIGTERM or Ctrl-C.

        Raises:
            DataError: the data cannot be read.
            ConfigError: as ``processes``.
        """
        processes = self.processes()
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # for a moment, because it loads torch
            other.submit(_read, self.data).result()
        with told_to_stop() as stop, closing(supervise(processes, say)) as steps:
            for _ in steps:
                if stop():
                    return
                time.sleep(PAUSE)


def _read(data: Path) -> None:
    from capfl.data import read_file

    read_file(data)
