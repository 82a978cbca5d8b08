"""A link and its nodes as processes, over TLS with keys: what a run over them gives, and who is not let in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.checkpoint import RunFolder
from capfl.config import to_toml
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.types import Entry
from deployment import Meter, Network
from sites import bits, config_for, write_files

pytestmark = [pytest.mark.slow, pytest.mark.network]

SETTINGS = {"evaluation__references": [], "runtime__cache": "memory", "federation__rounds": 3, "train__steps": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("files") / "data")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> Iterator[Network]:
    made = Network(tmp_path_factory.mktemp("network"))
    try:
        made.start_link(files)
        made.meter = Meter(made.port)
        for client, path in files.items():
            made.start_node(client, path, port=made.meter.port if client == "north" else None)
        yield made
    finally:
        made.stop()


def submitted(network: Network, files: dict[str, Path], name: str, **changes: object) -> tuple[Path, Path]:
    """Where a run's config is, and where the run will be."""
    out = network.folder / "runs" / name
    config = config_for(out, files, **SETTINGS | changes)
    place = network.folder / f"{name}.toml"
    place.write_text(to_toml(config))
    return place, out


def personal(network: Network, client: str, out: Path) -> Path:
    return network.state(client) / "runs" / json.loads((out / "network.json").read_text())["run"]


def alike(network: Network, files: dict[str, Path], out: Path, serially: Path) -> None:
    """Bits, table and ledger are those of the serial engine."""
    for name in ("state/server", "adapters/global"):
        assert bits(out, name) == bits(serially, name)
    one, two = (RunFolder(place).read_json("summary.json") for place in (serially, out))
    assert two["clients"] == one["clients"]
    assert two["bytes"] == one["bytes"]
    assert [record.ledger for record in RunFolder(out).rounds()] == [r.ledger for r in RunFolder(serially).rounds()]
    for client in files:
        assert bits(personal(network, client, out) / "adapter") == bits(serially / "adapters" / "clients" / client)


@pytest.fixture(scope="module")
def serially(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> Path:
    out = tmp_path_factory.mktemp("serial") / "run"
    run(config_for(out, files, **SETTINGS), serial)
    return out


def test_a_run_is_the_serial_run_and_its_bytes_are_those_on_the_wire(
    network: Network, files: dict[str, Path], serially: Path
) -> None:
    config, out = submitted(network, files, "parity")
    done = network.run("parity", config)
    assert done.ended(300) == 0, done.said()
    alike(network, files, out, serially)
    assert "mean" in done.said()

    summary = RunFolder(out).read_json("summary.json")
    entries = [entry for record in RunFolder(out).rounds() for entry in record.ledger]
    entries += [Entry(**row) for row in summary["bytes"]["delivery"]]
    own = [entry for entry in entries if entry.client == "north"]
    assert {entry.direction for entry in own} == {"up", "down"}
    assert network.meter.up > sum(entry.bytes for entry in own if entry.direction == "up")
    assert network.meter.down > sum(entry.bytes for entry in own if entry.direction == "down")
