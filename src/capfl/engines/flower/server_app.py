"""Flower's app at the server: the same run as everywhere, with clients at the nodes."""

from __future__ import annotations

import datetime
import hashlib
import json
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
from capfl.engines.flower.names import readable
from capfl.errors import CapflError
from capfl.experiment import Remote, resume, run
from capfl.report.findings import findings, in_short, verdicts
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
    console = Console(file=sys.stdout, width=120, emoji=False)
    patience = Patience(float(given["answer"]), float(given["node"]))
    try:
        clients = sorted(clients_of(config.data, config.partition))
        summary, path = serve(tolerant(grid), clients, config, bool(given["resume"]), patience, Printer(console))
    except CapflError as error:
        print(f"error: {type(error).__name__}\n{error}", flush=True)
        raise error.with_traceback(None) from None  # it says what to do; where it was raised does not
    console.print(summary_table(summary, [*verdicts(summary), *findings(summary), in_short(summary)]), highlight=False)
    console.print(f"{summary.seconds:.0f} s; everything but the clients' own adapters is in {path}", soft_wrap=True)
    sys.stdout.flush()


def serve(
    grid: Grid, clients: Sequence[ClientId], config: Config, again: bool, patience: Patience, reporter: Callback
) -> tuple[Summary, Path]:
    """A run over the nodes of a grid, from the start or from where its folder stands. Raises as ``experiment.run``.

    Which nodes join and leave is noted in ``network.jsonl`` of its folder.
    """
    assert config.out is not None
    path = Path(config.out)

    def note(event: str, client: ClientId, node: int) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with open(path / "network.jsonl", "a") as file:
            file.write(json.dumps({"time": now, "event": event, "client": client, "node": str(node)}) + "\n")
        reporter.on_note(f"{client} {event}: node {node}")

    nodes = Nodes(grid, clients, note)

    def exchange(agreement: Agreement) -> Exchange:
        if agreement.method.name == config.method.name:
            reporter.on_note(f"sites know this run as {name_of(path)}")
        return exchange_with(nodes, agreement, config, path, patience)

    remote = Remote(clients, exchange)
    return resume(path, remote, reporter) if again else run(config, remote, reporter)


def exchange_with(nodes: Nodes, agreement: Agreement, config: Config, path: Path, patience: Patience) -> Exchange:
    """The exchange with the clients at nodes, for one method of the run in a folder."""
    method, name = agreement.method.name, name_of(path)
    folder = RunFolder(path if method == config.method.name else path / "references" / method)
    used: dict[ClientId, int] = {}  # the last round in which each client's update was used
    seen = 0  # bytes of the records, of which ``used`` is
    longest = 2**20 + 16 * algebra.size(agreement.initial)  # bytes; no codec sends more a value

    def exchange(
        kind: Kind, round: int, clients: Sequence[ClientId], make: MakeRequest
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        nonlocal seen
        records, seen = folder.history.read(seen)
        for record in records:
            used.update(dict.fromkeys(record.clients, record.round))

        def request(client: ClientId) -> Request:
            return Request(name, kind, method, round, client, used.get(client, 0), make(client))

        return Delivery(nodes, patience, request, longest).replies(clients)

    return exchange


def name_of(path: Path) -> str:
    """The name at its sites of the run in a folder, which it keeps when it is resumed: of when and how it began."""
    return f"{readable(path.name)}-{hashlib.blake2b((path / 'run.json').read_bytes(), digest_size=8).hexdigest()}"
