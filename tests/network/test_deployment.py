"""A link and its nodes as processes, over TLS with keys: what a run over them gives, and who is not let in."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.checkpoint import RunFolder
from capfl.types import Entry
from deployment import Network, alike, submitted

pytestmark = [pytest.mark.slow, pytest.mark.network]


def test_a_run_is_the_serial_run_and_its_bytes_are_those_on_the_wire(
    network: Network, sites: dict[str, Path], serially: Path
) -> None:
    config, out = submitted(network, sites, "parity")
    done = network.run("parity", config)
    assert done.ended(300) == 0, done.said()
    alike(network, sites, out, serially)
    assert "mean" in done.said()

    summary = RunFolder(out).read_json("summary.json")
    entries = [entry for record in RunFolder(out).rounds() for entry in record.ledger]
    entries += [Entry(**row) for row in summary["bytes"]["delivery"]]
    own = [entry for entry in entries if entry.client == "north"]
    assert {entry.direction for entry in own} == {"up", "down"}
    assert network.meter.up > sum(entry.bytes for entry in own if entry.direction == "up")
    assert network.meter.down > sum(entry.bytes for entry in own if entry.direction == "down")
