"""A server and its nodes as processes, over TLS with keys: what a run gives, who is not let in, who may be killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import psutil
import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.checkpoint import RunFolder
from capfl.config import to_toml
from capfl.engines.flower.processes import environment, free_port
from capfl.engines.flower.runs import Connection
from capfl.engines.flower.server_app import name_of
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.roles.keyring import Keyring
from deployment import WITHIN, Network, capfl, child_of, end, wait_for
from sites import SIZES, bits, config_for, losing, write_files

pytestmark = pytest.mark.slow

SETTINGS: dict[str, object] = {
    "evaluation__references": [], "runtime__cache": "memory", "federation__rounds": 3, "train__steps": 2
}  # fmt: skip


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for each client."""
    return write_files(tmp_path_factory.mktemp("files") / "data")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, sites: dict[str, Path]) -> Iterator[Network]:
    """A server and three nodes."""
    made = Network(tmp_path_factory.mktemp("network"))
    try:
        made.start_server([*sites, "extra"])
        for client, path in sites.items():
            made.start_node(client, path)
        yield made
    finally:
        end(made.started)


@pytest.fixture(scope="module")
def serially(tmp_path_factory: pytest.TempPathFactory, sites: dict[str, Path]) -> Path:
    """The folder of the serial run."""
    out = tmp_path_factory.mktemp("serial") / "run"
    run(config_for(out, sites, **SETTINGS), serial)
    return out


def nodes(network: Network) -> list[str]:
    """The status of every node that the server knows."""
    return sorted(str(node["status"]) for node in Connection(network.home).ask("supernode", "list")["nodes"])


def submitted(network: Network, files: Mapping[str, Path], name: str, **changes: object) -> tuple[Path, Path]:
    """Where a run's config is, and where the run will be."""
    out = network.folder / "runs" / name
    config = config_for(out, files, **SETTINGS | changes)
    place = network.folder / f"{name}.toml"
    place.write_text(to_toml(config))
    return place, out


def alike(
    network: Network, out: Path, serially: Path, asked_again: bool = False, clients: Iterable[str] = SIZES
) -> None:
    """Bits, table and ledger are those of the serial engine.

    Args:
        asked_again: a client was, which has cost more bytes.
    """
    for name in ("state/server", "adapters/global"):
        if not asked_again or name == "adapters/global":
            assert bits(out, name) == bits(serially, name)
    for client, place in network.personal(clients, out).items():
        assert bits(place / "adapter") == bits(serially / "adapters" / "clients" / client)
    if not asked_again:
        one, two = (RunFolder(place).read_json("summary.json") for place in (serially, out))
        assert (two["clients"], two["bytes"]) == (one["clients"], one["bytes"])
        ledgers = [[record.ledger for record in RunFolder(place).rounds()] for place in (serially, out)]
        assert ledgers[1] == ledgers[0]


def hold(network: Network, client: str, out: Path) -> psutil.Process:
    """Stop the worker of a client that has joined, and wait until its node has a request that is not answered."""
    worker = child_of(network.nodes[client], "internals worker")
    events = out / "network.jsonl"
    wait_for(lambda: events.is_file() and f'"{client}"' in events.read_text(), WITHIN, f"{client} in the run")
    worker.suspend()
    wait_for(lambda: unanswered(network, client), WITHIN, "a request")
    return worker


def unanswered(network: Network, client: str) -> int:
    """How many requests the node of a client has that it has not answered."""
    said = (network.state(client) / "node.log").read_text()
    return said.count("Receiving: train message") - said.count("Sending: train message")


def failures(out: Path) -> list[tuple[str, str]]:
    return [(f.client, f.stage) for record in RunFolder(out).rounds() for f in record.failures]


def test_a_run_over_real_nodes_is_the_serial_run(network: Network, sites: dict[str, Path], serially: Path) -> None:
    config, out = submitted(network, sites, "parity")
    impostor = network.start_node("south", sites["south"], key="extra", state=network.folder / "impostor")
    wait_for(lambda: nodes(network).count("online") == 4, WITHIN, "four nodes")
    done = network.run("parity", config)
    assert done.ended(WITHIN) == 0, done.said()
    end([impostor])
    alike(network, out, serially)
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
    wait_for(lambda: "is not for this address, or differs from" in certificate.said(), WITHIN, "a wrong certificate")
    wait_for(lambda: log.read_text().count("Connection attempt failed") > 2, WITHIN, "plain text")
    assert nodes(network) == before
    assert network.server is not None
    assert "a node at 127.0.0.1 is not let in: its key is none of those in nodes/" in network.server.said()
    plain.kill()
    plain.wait()
    end([key, certificate])
    assert "Traceback" not in key.said() + certificate.said()


# -- killed in the middle of a round ----------------------------------------------------------------------------


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
    alike(network, out, serially, asked_again=True)
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
    alike(network, out, serially)


def test_interrupting_the_command_ends_the_run(network: Network, sites: dict[str, Path]) -> None:
    config, out = submitted(network, sites, "interrupted")
    done = network.run("interrupted", config)
    worker = hold(network, "south", out)
    done.process.terminate()
    assert done.ended(WITHIN) == 143, done.said()
    assert "continue with: capfl flower run --resume" in done.said()
    worker.resume()
    assert not RunFolder(out).rounds()


def test_a_node_that_is_killed_after_it_gave_its_key_is_left_out_of_the_sum(
    network: Network, sites: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the request for its masked update. The others open its masks, and it is in the next sum again."""
    files = sites | {"extra": tmp_path / "extra.jsonl"}
    shutil.copy(sites["west"], files["extra"])
    network.start_node("extra", files["extra"])
    changes = {"privacy__secure_aggregation": "honest-server", "federation__on_failure": "skip"}
    changes |= {"federation__rounds": 2}
    signing = partial(Keyring, lambda data: bytes(96))  # as long as what nodes sign
    monkeypatch.setattr("capfl.engines.serial.Keyring", signing)
    one, whole = run(config_for(tmp_path / "run", files, **SETTINGS | changes), losing({("train", "south", 1)}))

    config, out = submitted(network, files, "masked", **changes)
    west = child_of(network.nodes["west"], "internals worker")
    west.suspend()  # so that nobody is asked for an update before its key is there
    done = network.run("masked", config, "--node", WITHIN)
    events = network.state("south") / "events.jsonl"

    def gave_its_key() -> bool:
        if not (out / "run.json").exists():  # the process of the run has just begun
            return False
        said = [json.loads(line) for line in events.read_text().splitlines()]
        answered = [event["kind"] for event in said if event["event"] == "answered" and event["run"] == name_of(out)]
        return answered == ["keys"] and not unanswered(network, "south")

    wait_for(gave_its_key, WITHIN, "the key of south")
    south = child_of(network.nodes["south"], "internals worker")
    south.suspend()
    west.resume()
    wait_for(lambda: unanswered(network, "south"), WITHIN, "the request for an update")
    child_of(network.nodes["south"], "internals node").kill()
    south.kill()
    assert done.ended(WITHIN) == 0, done.said()
    assert failures(out) == [("south", "node")]
    present = [record.clients for record in RunFolder(out).rounds()]
    assert present == [("extra", "north", "west"), ("extra", "north", "south", "west")]
    assert one.failures == 1
    alike(network, out, whole, clients=files)
