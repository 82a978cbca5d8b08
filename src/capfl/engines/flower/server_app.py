"""Flower's app at the server: the same run as everywhere, with clients at the nodes."""

from __future__ import annotations

import datetime
import json
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from capfl import adapter as algebra
from capfl.checkpoint import RunFolder
from capfl.config import Config
from capfl.config.load import from_toml
from capfl.data import clients_of
from capfl.engines.flower.exchange import Delivery, Nodes, Patience
from capfl.engines.flower.internals import tolerant
from capfl.engines.flower.messages import Request
from capfl.errors import CapflError
from capfl.experiment import Remote, resume, run
from capfl.report.progress import Callback, Printer
from capfl.report.summary import Summary
from capfl.report.tables import summary_table
from capfl.roles.agreement import Agreement
from capfl.types import ClientId, Exchange, Failure, Kind
from capfl.types import Request as MakeRequest

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Run, or go on with, what ``capfl flower run`` has submitted."""
    given = context.run_config
    config = from_toml(str(given["config"]))
    console = Console(file=sys.stdout, width=120)
    patience = Patience(float(given["answer"]), float(given["node"]))
    try:
        clients = sorted(clients_of(config.data, config.partition))
        summary, path = serve(tolerant(grid), clients, config, bool(given["resume"]), patience, Printer(console))
    except CapflError as error:
        print(f"error: {type(error).__name__}\n{error}", flush=True)
        raise error.with_traceback(None) from None  # it says what to do; where it was raised does not
    console.print(summary_table(summary))
    console.print(f"{summary.seconds:.0f} s; everything but the clients' own adapters is in {path}", soft_wrap=True)
    sys.stdout.flush()


def serve(
    grid: Grid, clients: Sequence[ClientId], config: Config, again: bool, patience: Patience, reporter: Callback
) -> tuple[Summary, Path]:
    """A run over the nodes of a grid, from the start or from where its folder stands. Raises as ``experiment.run``."""
    assert config.out is not None
    remote = Remote(clients, Sites(grid, clients, RunFolder(Path(config.out)), patience, reporter).exchange)
    return resume(Path(config.out), remote, reporter) if again else run(config, remote, reporter)


class Sites:
    """The clients of a run, at nodes of their own. What happens to nodes is noted in ``network.jsonl``."""

    def __init__(
        self, grid: Grid, clients: Sequence[ClientId], folder: RunFolder, patience: Patience, reporter: Callback
    ) -> None:
        self._grid, self._clients, self._folder = grid, clients, folder
        self._patience, self._reporter = patience, reporter
        self._nodes: Nodes | None = None
        self._main = ""

    def exchange(self, agreement: Agreement) -> Exchange:
        """The exchange for one method of the run; the first one asked for is the run's own."""
        method = agreement.method.name
        if self._nodes is None:
            self._main, self._nodes = method, Nodes(self._grid, self._clients, self._note)
        nodes, name, folder = self._nodes, self._name(), self._folder
        if method != self._main:
            folder = RunFolder(folder.path / "references" / method)
        longest = 2**20 + 16 * algebra.size(agreement.initial)  # bytes; no codec sends more a value

        def exchange(
            kind: Kind, round: int, clients: Sequence[ClientId], make: MakeRequest
        ) -> Iterator[tuple[ClientId, bytes | Failure]]:
            used = {client: record.round for record in folder.rounds() for client in record.clients}

            def request(client: ClientId) -> Request:
                return Request(name, kind, method, round, client, used.get(client, 0), make(client))

            return Delivery(self._grid, nodes, self._patience, request, longest).replies(clients)

        return exchange

    def _name(self) -> str:
        """The name of the run at its sites, which it keeps when it is resumed."""
        if not (self._folder.path / "network.json").is_file():
            readable = re.sub(r"[^A-Za-z0-9_.-]", "-", self._folder.path.name).lstrip(".-")[:50] or "run"
            self._folder.write_json("network.json", {"run": f"{readable}-{secrets.token_hex(4)}"})
        return str(self._folder.read_json("network.json")["run"])

    def _note(self, event: str, client: ClientId, node: int) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with open(self._folder.path / "network.jsonl", "a") as file:
            file.write(json.dumps({"time": now, "event": event, "client": client, "node": str(node)}) + "\n")
        self._reporter.on_note(f"{client} {event}: node {node}")
