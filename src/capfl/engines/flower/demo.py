"""A network on one machine: a server and three nodes, with certificates and keys, as they would be on four."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from capfl.config import Config
from capfl.data import generate
from capfl.engines.flower.keys import make_keys
from capfl.engines.flower.processes import GRACE, Process, end_all, environment, free_port
from capfl.engines.flower.runs import Connection, ServerError, follow, submit
from capfl.experiment import free_folder
from capfl.types import ClientId

SITES = 3
READY_WITHIN = 120.0  # seconds
ANSWER, NODE = 1800.0, 120.0  # seconds of patience with a reply, and with a missing node

Rows = Mapping[ClientId, Sequence[Mapping[str, str]]]


def built_in(config: Config) -> Rows:
    """The built-in data as rows {text, label}, by site."""
    rows: dict[ClientId, list[dict[str, str]]] = {}
    for item in generate(SITES, config.data.items, config.data.conflict, config.seed):
        row = {"text": item.question, "label": item.fields["label"]}
        rows.setdefault(item.fields["site"], []).append(row)
    return rows


def prepare(config: Config, rows: Rows | None = None) -> tuple[Config, dict[ClientId, Path]]:
    """Write rows as one file a site, in the form of anybody's own; and the config that reads them.

    Args:
        rows: {text, label} by site; by default the built-in data.
    """
    place = free_folder(config).absolute()
    rows = built_in(config) if rows is None else rows
    paths = {site: place / "data" / f"{site}.jsonl" for site in sorted(rows)}
    for site, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[site]), encoding="utf-8")
    given = config.model_dump() | {"out": str(place / "run")}
    given["data"] |= {"sets": tuple(map(str, paths.values()))}
    given["partition"] |= {"kind": "by_task", "clients": None}
    given["runtime"] |= {"threads": config.runtime.threads or max(1, (os.cpu_count() or 1) // SITES)}
    return Config.model_validate(given), paths


def run(config: Config, data: dict[ClientId, Path], say: Callable[[str], None]) -> bool:
    """Run a config of ``prepare`` over a node for each client, and end everything. Has the run succeeded?

    Raises:
        ServerError: the server does not start.
    """
    assert config.out is not None
    place = Path(config.out).parent
    keys, home, port = place / "keys", place / "server", free_port()
    make_keys(keys, list(data), [], days=1)
    server = _process("server", ["server", "--keys", keys, "--port", port, "--home", home], home)
    nodes = []
    for client, path in data.items():
        state = place / "nodes" / client
        words = ["node", "--server", f"127.0.0.1:{port}", "--client", client, "--data", path, "--state", state]
        words += ["--ca", keys / "ca.crt", "--key", keys / "nodes" / f"{client}.key"]
        nodes.append(_process(f"node {client}", words, state))
    try:
        server.start()
        by = time.monotonic() + READY_WITHIN
        while not any(line.startswith("server ready") for line in server.last_words()):
            if server.ended() is not None or time.monotonic() > by:
                raise ServerError("the server does not start:\n" + "\n".join(server.last_words()))
            time.sleep(0.1)
        for node in nodes:
            node.start()
        say(f"server at 127.0.0.1:{port} and nodes of {', '.join(data)}, with TLS and keys; everything is in {place}")
        return follow(Connection(home), submit(Connection(home), config, False, ANSWER, NODE), say)
    finally:
        end_all([server, *nodes], within=2 * GRACE)  # each of them has processes of its own to end


def _process(name: str, words: Sequence[object], folder: Path) -> Process:
    command = [sys.executable, "-m", "capfl.cli", "flower", *map(str, words)]
    return Process(name, command, environment(folder), folder / "out.log")
