"""A client alone with its data gives the bits that it gives beside the others; so does a run over such clients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from capfl.config import Config
from capfl.data import clients_of
from capfl.engines import serial
from capfl.experiment import Remote, run
from capfl.roles import Agreement
from capfl.site import Client
from capfl.types import ClientId, Exchange, Failure, Kind, Request
from support import tiny_config

LABELS = {"north": ("red", "green", "blue"), "south": ("up", "down"), "west": ("red", "up", "left", "right")}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """One file a client, of different sizes, with labels of their own."""
    paths = []
    for client, labels in LABELS.items():
        rows = [
            {"text": f"{client} call {i * 7 % 13}", "label": labels[i % len(labels)]}
            for i in range(20 + 5 * len(labels))
        ]
        path = tmp_path / "data" / f"{client}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
        paths.append(str(path))
    return paths


def config_of(out: Path, files: list[str], **changes: object) -> Config:
    ours = {
        "data__sets": files,
        "partition__kind": "by_task",
        "evaluation__references": ["local"],
        "evaluation__every": 0,
        "runtime__cache": "memory",
    }
    return tiny_config(out, **ours | changes)


class Sites:
    """Clients that share nothing but a config. Each is asked as it would be over a network."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.clients = {
            client: Client(config, client, folder / client, Path(path))
            for client, path in clients_of(config.data, config.partition).items()
        }
        self.asked: list[tuple[Kind, str, ClientId]] = []
        self.bytes = 0

    def exchange(self, agreement: Agreement) -> Exchange:
        name = agreement.method.name

        def exchange(
            kind: Kind, round: int, clients: Sequence[ClientId], request: Request
        ) -> Iterator[tuple[ClientId, bytes | Failure]]:
            for client in clients:
                self.asked.append((kind, name, client))
                blob = request(client)
                reply = self.clients[client].answer(kind, name, blob)
                self.bytes += len(blob) + len(reply)
                yield client, reply

        return exchange

    @property
    def remote(self) -> Remote:
        return Remote(list(self.clients), self.exchange)


def bits(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_over_sites_is_the_serial_run(tmp_path: Path, files: list[str]) -> None:
    config = config_of(tmp_path / "serial", files)
    one, _ = run(config, serial)
    apart = config_of(tmp_path / "apart", files)
    sites = Sites(apart, tmp_path / "sites")
    two, _ = run(apart, sites.remote)
    assert two.rows == one.rows
    assert two.ledger == one.ledger
