"""Processes of a network that are killed or stopped in the middle of a round: the run ends as its policy says."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.checkpoint import RunFolder
from deployment import WITHIN, Network, alike, child_of, kill, submitted, wait_for

pytestmark = pytest.mark.slow

RETRY = {"federation__on_failure": "retry", "federation__retries": 3}
SKIP = {"federation__on_failure": "skip"}


def hold(network: Network, client: str, out: Path) -> int:
    """Stop the worker of a client that has joined, and wait until its node has a request that is not answered."""
    worker = child_of(network.nodes[client], "internals worker")
    events = out / "network.jsonl"
    wait_for(lambda: events.is_file() and f'"{client}"' in events.read_text(), WITHIN, f"{client} in the run")
    os.kill(worker, signal.SIGSTOP)

    def said(words: str) -> int:
        return (network.state(client) / "node.log").read_text().count(words)

    wait_for(
        lambda: said("Receiving: train message") > said("Sending: train message"), WITHIN, "a request for training"
    )
    return worker


def failures(out: Path) -> list[tuple[int, str, str]]:
    return [(record.round, f.client, f.stage) for record in RunFolder(out).rounds() for f in record.failures]


def test_a_node_that_is_killed_comes_back_and_nothing_is_lost(
    network: Network, sites: dict[str, Path], serially: Path
) -> None:
    """Node and worker, at once, while the node has a request that is not answered."""
    config, out = submitted(network, sites, "node", **RETRY)
    done = network.run("node", config)
    worker = hold(network, "south", out)
    kill(child_of(network.nodes["south"], "internals node"))
    kill(worker)
    assert done.ended(WITHIN) == 0, done.said()
    assert [failure[1:] for failure in failures(out)] == [("south", "node")]
    alike(network.personal(sites, out), out, serially, but=("ledger", "bytes"))
    events = [json.loads(line) for line in (out / "network.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["client"] == "south"] == ["joined", "left", "joined"]


def test_a_worker_that_is_killed_while_it_trains(network: Network, sites: dict[str, Path], serially: Path) -> None:
    config, out = submitted(network, sites, "worker", **RETRY)
    done = network.run("worker", config)
    log = network.state("west") / "worker.log"
    wait_for(lambda: "worker-" in log.read_text(), WITHIN, "the client's first step")
    kill(child_of(network.nodes["west"], "internals worker"))
    assert done.ended(WITHIN) == 0, done.said()
    assert failures(out) in ([(1, "west", "node")], [])  # or it had just answered
    alike(network.personal(sites, out), out, serially, but=("ledger", "bytes"))


def test_a_server_that_is_killed_comes_back_and_the_run_goes_on(
    network: Network, sites: dict[str, Path], serially: Path
) -> None:
    config, out = submitted(network, sites, "superlink")
    done = network.run("superlink", config)
    worker = hold(network, "south", out)
    kill(child_of(network.server, "internals server"))
    wait_for(lambda: "server ended with -9" in network.server.said(), 30, "the death of the server")
    os.kill(worker, signal.SIGCONT)
    assert done.ended(WITHIN) == 0, done.said()
    assert failures(out) == []
    alike(network.personal(sites, out), out, serially)


def test_a_run_whose_process_is_killed_goes_on_from_its_last_round(
    network: Network, sites: dict[str, Path], serially: Path
) -> None:
    config, out = submitted(network, sites, "process")
    worker = child_of(network.nodes["south"], "internals worker")
    done = network.run("process", config)
    wait_for(lambda: (out / "rounds.jsonl").is_file() and RunFolder(out).rounds(), WITHIN, "the first round")
    os.kill(worker, signal.SIGSTOP)
    kill(child_of(child_of(network.server, "flower-superexec"), "flwr-serverapp"))
    assert done.ended(WITHIN) == 1, done.said()
    assert "finished:failed" in done.said()
    os.kill(worker, signal.SIGCONT)
    assert len(RunFolder(out).rounds()) < 3
    again = network.run("again", "--resume", out)
    assert again.ended(WITHIN) == 0, again.said()
    alike(network.personal(sites, out), out, serially)


def test_a_node_that_is_too_slow_misses_rounds_and_catches_up(network: Network, sites: dict[str, Path]) -> None:
    config, out = submitted(network, sites, "slow", federation__rounds=6, **SKIP)
    done = network.run("slow", config, "--answer", 30)
    worker = hold(network, "south", out)
    wait_for(lambda: len(failures(out)) == 2, WITHIN, "two rounds without south")
    os.kill(worker, signal.SIGCONT)
    assert done.ended(WITHIN) == 0, done.said()
    assert {failure[1:] for failure in failures(out)} == {("south", "deadline")}
    records = RunFolder(out).rounds()
    used = [record.round for record in records if "south" in record.clients]
    assert used[-1] == 6
    assert RunFolder(out).read_json("summary.json")["clients"][1]["id"] == "south"
    told = {e.round: e.bytes for r in records for e in r.ledger if (e.client, e.direction) == ("south", "down")}
    usual = {e.round: e.bytes for r in records for e in r.ledger if (e.client, e.direction) == ("north", "down")}
    assert told[used[0]] > usual[used[0]]  # it is charged for what it missed


def test_a_node_that_never_comes_back_is_left_out(network: Network, sites: dict[str, Path]) -> None:
    """The last test of this file: the network has two nodes after it."""
    config, out = submitted(network, sites, "gone", **SKIP)
    network.nodes["south"].stop()
    done = network.run("gone", config, "--node", 5)
    assert done.ended(WITHIN) == 0, done.said()
    assert failures(out) == [(round, "south", "absent") for round in (1, 2, 3)]
    assert [row["id"] for row in RunFolder(out).read_json("summary.json")["clients"]] == ["north", "west"]
