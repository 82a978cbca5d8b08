"""A real run over a network on this machine: three sites, a server and three nodes over TLS with keys.

    python benchmarks/flower_nodes.py [--model smollm2] [--rounds 6] [--set key=value] [--kill]
                                      [--data-dir FOLDER] [--out RESULT.json]

It is also the quickest way to see a network: with ``--model tiny`` it takes minutes.

The sites are those of `helpdesk`. With ``--data-dir`` they are made of CLINC150 (FOLDER/clinc150/train.jsonl), and the
method is CA-PFL: two banks, who have other requests about the same things, and a travel agency, who has no peer.

Beside the same run by the serial engine: are the bits the same, how long does a round take, what is on one node's
socket beside the bytes of the ledger, how much memory does every process take. With ``--kill`` one node and its worker
are ended by SIGKILL while they train, in the middle of the run; their supervisor and the run's policy do the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from capfl import experiment
from capfl.checkpoint import RunFolder
from capfl.config import Config, load_config, to_toml
from capfl.config.keys import flat
from capfl.data import generate
from capfl.engines.flower.runs import Connection
from capfl.engines.serial import serial

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from deployment import Network, child_of, end, wait_for
from sites import bits

CLINC = {"bank-1": "banking", "bank-2": "banking", "travel": "travel"}  # the domain of each site
EACH = 7  # rows of an intent at a site
IDLE = 30.0  # seconds for which the metered node is watched before it has anything to do
WITHIN = 1800.0  # seconds for anything to happen
SETTINGS = {
    "method.name": "fedit", "lora.targets": "q_proj,v_proj", "data.items": 80, "data.conflict": 0.25,
    "train.steps": 4, "train.batch_size": 8, "train.learning_rate": 4e-3, "evaluation.every": 0,
    "evaluation.references": [], "runtime.threads": 1, "federation.on_failure": "retry",
}  # fmt: skip
CLINC_SETTINGS = SETTINGS | {
    "lora.targets": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    "method.name": "ca-pfl", "train.steps": 6,
    "train.schedule": "linear", "partition.test": 0.5, "partition.validation": 0.05,
}  # fmt: skip


def clinc(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Rows {text, label} for each of the sites of ``CLINC``: an intent's first go to the first site of its domain."""
    sites: dict[str, list[dict[str, str]]] = {site: [] for site in CLINC}
    seen: Counter[str] = Counter()
    for line in (folder / "clinc150" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        own = [site for site, domain in CLINC.items() if domain == row["domain"]]
        at = seen[row["intent"]] // EACH
        seen[row["intent"]] += 1
        if at < len(own):
            sites[own[at]].append({"text": row["text"], "label": row["intent"]})
    return sites


def built_in(config: Config) -> dict[str, list[dict[str, str]]]:
    """Rows {text, label} of the built-in data for each of three sites."""
    rows: dict[str, list[dict[str, str]]] = {}
    for item in generate(3, config.data.items, config.data.conflict, config.seed):
        rows.setdefault(item.fields["site"], []).append({"text": item.question, "label": item.fields["label"]})
    return rows


def prepare(config: Config, rows: dict[str, list[dict[str, str]]], place: Path) -> tuple[Config, dict[str, Path]]:
    """Write rows as one file a site, in the form of anybody's own; and the config that reads them."""
    paths = {site: place / "data" / f"{site}.jsonl" for site in sorted(rows)}
    for site, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[site]), encoding="utf-8")
    given = config.model_dump() | {"out": str(place / "run")}
    given["data"] |= {"sets": tuple(map(str, paths.values()))}
    given["partition"] |= {"kind": "by_task", "clients": None}
    return Config.model_validate(given), paths


def alone(settings: dict[str, Any]) -> dict[str, Any]:
    """The serial run in a process of its own, and what it takes."""
    command = [sys.executable, __file__, "serial", json.dumps(settings)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_serially(settings: dict[str, Any]) -> None:
    summary, path = experiment.run(load_config(None, settings), serial)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "seconds_a_round": round(statistics.median(record.seconds for record in RunFolder(path).rounds()), 2),
        "seconds": round(summary.seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": summary.peak_memory // 2**20,
        "bytes": {way: summary.total_bytes(way) for way in ("up", "down")},
    }))  # fmt: skip


def measure(config: Config, data: dict[str, Path], killing: bool) -> dict[str, Any]:
    """Both runs, one after the other."""
    assert config.out is not None
    place = Path(config.out).parent
    metered, killed = min(data), max(data)
    (place / "run.toml").write_text(to_toml(config))
    settings = dict(flat(config.model_dump(mode="json"))) | {"out": str(place / "serial")}
    serially = alone(settings)

    network = Network(place)
    try:
        network.start_server(data)
        meter = Meter(network.port)
        for client, path in data.items():
            network.start_node(client, path, port=meter.port if client == metered else None)
        peak = Peak([started.process.pid for started in network.started])
        wait_for(lambda: online(network) == len(data), WITHIN, "the nodes")
        before = meter.bytes
        time.sleep(IDLE)
        idle = (meter.bytes - before) / IDLE
        before, began = meter.bytes, time.monotonic()
        going = network.run("out", place / "run.toml")
        if killing:
            kill_while_training(network, killed, RunFolder(place / "run"), config.federation.rounds // 2)
        status = going.ended(WITHIN)
        print(going.said())
        if status:
            raise SystemExit(status)
        on_the_wire, seconds = meter.bytes - before, time.monotonic() - began
    finally:
        end(network.started)
        meter.close()

    run = RunFolder(place / "run")
    summary, records = run.read_json("summary.json"), run.rounds()
    (own,) = [row for row in summary["clients"] if row["id"] == metered]
    payload, messages = own["bytes_up"] + own["bytes_down"], config.federation.rounds + 1  # and the evaluation
    framing = on_the_wire - payload - idle * seconds
    return {
        "config": {key: value for key, value in flat(config.model_dump(mode="json")) if key in CLINC_SETTINGS}
        | {"model": config.model.path, "layers": config.lora.layers, "rounds": len(records)},
        "same_bits": same_bits(network, run.path, place / "serial", data),
        "accuracy": {client["id"]: {kind: client[kind] for kind in ("base", "shared", "personal")}
                     for client in summary["clients"]},
        "serial": serially,
        "nodes": {
            "seconds_a_round": [round(record.seconds, 1) for record in records],
            "seconds": round(summary["seconds"], 1),
            "seconds_of_the_command": round(seconds, 1),
            "peak_mib": peak.read(),
        },
        "one_node": {
            "requests": messages,
            "ledger_bytes": payload,
            "wire_bytes": on_the_wire,
            "idle_bytes_a_second": round(idle),
            "framing_bytes_a_request": round(framing / messages),
            "framing_percent_of_ledger": round(100 * framing / payload, 1),
        },
        "failures": [[record.round, f.client, f.stage, f.reason] for record in records for f in record.failures],
        "events": [
            [row["time"], row["event"], row["client"]]
            for row in map(json.loads, (run.path / "network.jsonl").read_text().splitlines())
        ],
    }  # fmt: skip


def online(network: Network) -> int:
    nodes = Connection(network.home).ask("supernode", "list")["nodes"]
    return sum(node["status"] == "online" for node in nodes)


def kill_while_training(network: Network, killed: str, run: RunFolder, after: int) -> None:
    """End a node and its worker, when it has a request of a later round that it has not answered."""
    log = network.state(killed) / "node.log"

    def busy() -> bool:
        said = log.read_text(errors="replace")
        return said.count("Receiving: train message") > said.count("Sending: train message")

    wait_for(lambda: (run.path / "rounds.jsonl").is_file() and len(run.rounds()) >= after, WITHIN, f"round {after}")
    wait_for(busy, WITHIN, "a request for training")
    for words in ("internals node", "internals worker"):
        child_of(network.nodes[killed], words).kill()


def same_bits(network: Network, out: Path, serially: Path, clients: dict[str, Path]) -> bool:
    """Are the server's state, the global adapter and every client's own adapter those of the serial engine?"""
    pairs = [(out / name, serially / name) for name in ("state/server", "adapters/global")]
    for client, place in network.personal(clients, out).items():
        pairs.append((place / "adapter", serially / "adapters" / "clients" / client))
    return all(bits(one) == bits(two) for one, two in pairs)


class Meter:
    """Passes on whatever comes to a port of its own, to another one, and counts the bytes of both ways."""

    def __init__(self, target: int) -> None:
        self.target, self.bytes = target, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with self._listening, contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as far:
            while True:
                for end in select.select([near, far], [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    self.bytes += len(data)
                    (far if end is near else near).sendall(data)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)


class Peak:
    """The peak of resident memory of processes and of everything that they have started, looked at every second."""

    def __init__(self, pids: list[int]) -> None:
        self._above = [psutil.Process(pid) for pid in pids]
        self._found: dict[str, int] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def read(self) -> dict[str, int]:
        """MiB by kind of process, the largest of its kind."""
        return dict(sorted(self._found.items()))

    def _watch(self) -> None:
        while True:
            for above in self._above:
                with contextlib.suppress(psutil.Error):  # one that has just ended
                    for process in (above, *above.children(recursive=True)):
                        self._note(process)
            time.sleep(1)

    def _note(self, process: psutil.Process) -> None:
        words = process.cmdline()
        kind = next((word for word in words if word in ("server", "node", "worker")), "")
        inner = any("internals" in word for word in words)
        for name in ("flower-superexec", "flwr-serverapp", "flwr-clientapp"):
            if any(word.endswith(name) for word in words):
                kind, inner = name, True
        label = kind if inner else f"supervisor of a {kind}" if kind else "another process"
        self._found[label] = max(process.memory_info().rss // 2**20, self._found.get(label, 0))


def main() -> None:
    if sys.argv[1:2] == ["serial"]:
        run_serially(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        layers = "top:2" if args.model == "tiny" else "top:6"
        given = (CLINC_SETTINGS if args.data_dir else SETTINGS) | {
            "model.path": args.model, "lora.layers": layers, "federation.rounds": args.rounds,
        }  # fmt: skip
        given |= dict(pair.partition("=")[::2] for pair in args.set)
        config = load_config(None, given)
        rows = clinc(args.data_dir) if args.data_dir else built_in(config)
        config, data = prepare(config, rows, Path(folder) / "network")
        result = measure(config, data, args.kill)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
