"""A server and its nodes as processes, over TLS with keys: what a run over them gives, and who is not let in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.engines.flower.processes import environment, free_port
from capfl.engines.flower.runs import Connection
from deployment import WITHIN, Network, alike, capfl, submitted, wait_for

pytestmark = pytest.mark.slow


def test_a_run_over_real_nodes_is_the_serial_run(network: Network, sites: dict[str, Path], serially: Path) -> None:
    config, out = submitted(network, sites, "parity")
    impostor = network.start_node("south", sites["south"], key="extra", state=network.folder / "impostor")
    wait_for(lambda: nodes(network).count("online") == 4, WITHIN, "four nodes")
    done = network.run("parity", config)
    assert done.ended(WITHIN) == 0, done.said()
    impostor.stop()
    alike(network.personal(sites, out), out, serially)
    assert "mean" in done.said()

    # whose key is another client's is asked for nothing
    events = [json.loads(line) for line in (out / "network.jsonl").read_text().splitlines()]
    assert sorted((event["event"], event["client"]) for event in events) == [("joined", client) for client in sites]
    assert not list((network.folder / "impostor").glob("runs/*"))


def test_who_is_not_let_in(network: Network, sites: dict[str, Path]) -> None:
    """A wrong key, a wrong certificate; and plain text and no key, which our own command does not even try."""
    other, ours = network.folder / "other", network.folder / "keys"
    assert subprocess.run(capfl("keys", other, "--nodes", "north"), check=False).returncode == 0
    before = nodes(network)
    data, there = sites["north"], network.folder
    right, wrong = ["--certificate", ours / "server.crt"], ["--certificate", other / "server.crt"]
    own, strange = ["--key", ours / "nodes" / "extra.key"], ["--key", other / "nodes" / "north.key"]
    key = network.start_node("key", data, *right, *strange, state=there / "a")
    certificate = network.start_node("certificate", data, *wrong, *own, state=there / "b")
    command = [sys.executable, "-m", "capfl.engines.flower.internals", "node", "--isolation", "process"]
    command += ["--superlink", f"127.0.0.1:{network.port}", "--port", str(free_port())]
    keyless = subprocess.run(
        [*command, "--root-certificates", str(ours / "server.crt")], env=environment(there / "c"), capture_output=True,
        text=True, timeout=WITHIN, check=False,
    )  # fmt: skip
    assert keyless.returncode == 1
    assert "All SuperNodes must be registered" in keyless.stdout + keyless.stderr
    log = there / "plain.log"
    with open(log, "wb") as output:
        plain = subprocess.Popen([*command, "--insecure"], env=environment(there / "d"), stdout=output, stderr=output)
    wait_for(lambda: "its key is not registered there" in key.said(), WITHIN, "the refusal of a key")
    wait_for(lambda: "is not for this address, or not that of" in certificate.said(), WITHIN, "a wrong certificate")
    wait_for(lambda: log.read_text().count("Connection attempt failed") > 2, WITHIN, "plain text")
    assert nodes(network) == before
    plain.kill()
    plain.wait()
    for node in (key, certificate):
        node.stop()
        assert "Traceback" not in node.said()


def nodes(network: Network) -> list[str]:
    """The status of every node that the server knows."""
    return sorted(str(node["status"]) for node in Connection(network.home).ask("supernode", "list")["nodes"])
