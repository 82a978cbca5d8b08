"""Processes of a network that are killed in the middle of a round: the run goes on to the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.checkpoint import RunFolder
from deployment import WITHIN, Network, alike, child_of, submitted, wait_for

pytestmark = pytest.mark.slow


def hold(network: Network, client: str, out: Path) -> psutil.Process:
    """Stop the worker of a client that has joined, and wait until its node has a request that is not answered."""
    worker = child_of(network.nodes[client], "internals worker")
    events = out / "network.jsonl"
    wait_for(lambda: events.is_file() and f'"{client}"' in events.read_text(), WITHIN, f"{client} in the run")
    worker.suspend()

    def said(words: str) -> int:
        return (network.state(client) / "node.log").read_text().count(words)

    wait_for(lambda: said("Receiving: train message") > said("Sending: train message"), WITHIN, "a request")
    return worker


def failures(out: Path) -> list[tuple[str, str]]:
    return [(f.client, f.stage) for record in RunFolder(out).rounds() for f in record.failures]


def test_a_node_that_is_killed_comes_back_and_nothing_is_lost(
    network: Network, sites: dict[str, Path], serially: Path
) -> None:
    """Node and worker, at once, while the node has a request that is not answered."""
    config, out = submitted(network, sites, "node", federation__on_failure="retry")
    done = network.run("node", config)
    worker = hold(network, "south", out)
    child_of(network.nodes["south"], "internals node").kill()
    worker.kill()
    assert done.ended(WITHIN) == 0, done.said()
    assert failures(out) == [("south", "node")]
    alike(network.personal(sites, out), out, serially, asked_again=True)
    events = [json.loads(line) for line in (out / "network.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["client"] == "south"] == ["joined", "left", "joined"]


def test_a_server_and_then_the_process_of_its_run_are_killed(
    network: Network, sites: dict[str, Path], serially: Path
) -> None:
    """The run outlives the server's death. After its own it goes on with ``--resume``, from its last round."""
    config, out = submitted(network, sites, "server")
    assert network.server is not None
    done = network.run("server", config)
    worker = hold(network, "south", out)
    child_of(network.server, "internals server").kill()
    wait_for(lambda: "server ended with -9" in network.server.said(), 60, "the death of the server")
    worker.resume()
    wait_for(lambda: (out / "rounds.jsonl").is_file() and RunFolder(out).rounds(), WITHIN, "the first round")
    worker.suspend()
    child_of(child_of(network.server, "flower-superexec"), "flwr-serverapp").kill()
    assert done.ended(WITHIN) == 1, done.said()
    assert "finished:failed" in done.said()
    worker.resume()
    assert len(RunFolder(out).rounds()) < 3
    again = network.run("again", "--resume", out)
    assert again.ended(WITHIN) == 0, again.said()
    assert failures(out) == []
    alike(network.personal(sites, out), out, serially)


def test_interrupting_the_command_ends_the_run(network: Network, sites: dict[str, Path]) -> None:
    config, out = submitted(network, sites, "interrupted")
    done = network.run("interrupted", config)
    worker = hold(network, "south", out)
    done.process.terminate()
    assert done.ended(WITHIN) == 130, done.said()
    assert "go on with: capfl flower run --resume" in done.said()
    worker.resume()
    assert not RunFolder(out).rounds()
