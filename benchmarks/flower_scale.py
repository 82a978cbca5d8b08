"""What the network costs beside the serial engine: many virtual nodes, and three real ones.

    python benchmarks/flower_scale.py virtual [--model smollm2] [--clients 200] [--rounds 3]
    python benchmarks/flower_scale.py nodes [--model smollm2] [--rounds 5] [--no-keep-model]

``virtual``: the same run by the serial engine and by ``capfl flower simulate``, each in a process of its own; seconds a
round, peak memory, and whether what comes out has the same bits. ``nodes``: `helpdesk` at three sites, a link and three
nodes on this machine over TLS with keys, and the same run by the serial engine; seconds a round, bytes on one node's
socket beside those in the ledger, and peak memory of every process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SITES = ("airline", "bank", "hospital")


# -- one run in a process of its own -----------------------------------------------------------------


def child(engine: str, settings: dict[str, Any]) -> None:
    """One run; prints what it took."""
    from capfl.checkpoint import RunFolder
    from capfl.config import load_config
    from capfl.report.progress import Silent

    config = load_config(None, settings)
    if engine == "serial":
        from capfl.engines.serial import serial
        from capfl.experiment import run

        summary, path = run(config, serial)
    else:
        from capfl.engines.flower.simulation import simulate

        summary, path = simulate(config, False, Silent())
    records = RunFolder(path).rounds()
    print(json.dumps({
        "engine": engine,
        "seconds_a_round": round(statistics.median(record.seconds for record in records), 2),
        "seconds": round(summary.seconds, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "personal": summary.statistics("personal"),
        "bytes": {way: summary.total_bytes(way) for way in ("up", "down")},
    }))  # fmt: skip


def alone(engine: str, settings: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "child", engine, json.dumps(settings)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def virtual(model: str, clients: int, rounds: int) -> dict[str, Any]:
    """Every client has ten items and takes part in every round."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model.path": model, "lora.layers": "top:1", "data.sites": 12, "data.items": clients * 10 // 12 + 13,
            "partition.kind": "iid", "partition.clients": clients, "partition.max_items": 10,
            "partition.min_items": 10, "federation.rounds": rounds, "train.steps": 1, "train.batch_size": 4,
            "evaluation.every": 0, "evaluation.max_items": 1, "evaluation.references": [], "runtime.threads": 1,
        }  # fmt: skip
        results = [alone(engine, settings | {"out": f"{folder}/{engine}"}) for engine in ("serial", "simulate")]
        same = (Path(folder) / "serial/state/server").read_bytes() == Path(folder, "simulate/state/server").read_bytes()
    return {"model": model, "clients": clients, "rounds": rounds, "runs": results, "same_bits": same}


# -- three nodes -------------------------------------------------------------------------------------


def nodes(model: str, rounds: int, keep_model: bool) -> dict[str, Any]:
    """`helpdesk` at three sites, as in the demo."""
    from capfl.checkpoint import RunFolder
    from capfl.config import load_config, to_toml
    from capfl.engines.flower.demo import prepare
    from capfl.engines.flower.processes import free_port

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "network"
        given = {
            "model.path": model, "lora.layers": "top:6" if model != "tiny" else "top:2", "data.items": 240,
            "data.conflict": 0.25, "federation.rounds": rounds, "train.steps": 10, "train.learning_rate": 4e-3,
            "evaluation.every": 0, "evaluation.references": [], "runtime.threads": 1, "out": str(place),
        }  # fmt: skip
        config, data = prepare(load_config(None, given))
        (place / "run.toml").write_text(to_toml(config))
        serially = alone("serial", _settings(config.model_dump(mode="json"), str(Path(folder) / "serial")))

        port, started = free_port(), []
        keys = place / "keys"
        subprocess.run(_capfl("keys", keys, "--nodes", ",".join(data)), check=True, stdout=subprocess.DEVNULL)
        try:
            link = _start(place / "link.out", "link", "--keys", keys, "--port", port, "--home", place / "link")
            started.append(link)
            while "link ready" not in (place / "link.out").read_text():
                if link.poll() is not None:
                    raise SystemExit((place / "link.out").read_text())
                time.sleep(0.2)
            meter = Meter(port)
            for client, path in data.items():
                words = ["--link", f"127.0.0.1:{meter.port if client == SITES[0] else port}", "--client", client]
                words += ["--data", path, "--state", place / client, "--ca", keys / "ca.crt"]
                words += ["--key", keys / "nodes" / f"{client}.key"]
                words += [] if keep_model else ["--no-keep-model"]
                started.append(_start(place / f"{client}.out", "node", *words))
            peak = Peak([process.pid for process in started])
            time.sleep(30)  # nobody has anything to do
            idle = meter.total / meter.seconds
            before, began = meter.total, time.monotonic()
            done = subprocess.run(_capfl("run", place / "run.toml", "--home", place / "link"), check=True,
                                  stdout=subprocess.PIPE, text=True)  # fmt: skip
            on_the_wire, seconds = meter.total - before, time.monotonic() - began
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()
        run = RunFolder(place / "run")
        summary, records = run.read_json("summary.json"), run.rounds()
        own = next(row for row in summary["clients"] if row["id"] == SITES[0])
        messages = 1 + rounds + 1  # whose node it is, training, evaluation
        beside = on_the_wire - own["bytes_up"] - own["bytes_down"] - idle * seconds
        same = (place / "run/state/server").read_bytes() == (Path(folder) / "serial/state/server").read_bytes()
    print(done.stdout)
    return {
        "model": model, "rounds": rounds, "keep_model": keep_model, "same_bits": same, "serial": serially,
        "nodes": {
            "seconds_a_round": [round(record.seconds, 1) for record in records],
            "seconds": round(summary["seconds"], 1),
            "seconds_of_the_command": round(seconds, 1),
            "peak_mib": peak.read(),
        },
        "one_node": {
            "ledger_bytes": own["bytes_up"] + own["bytes_down"], "wire_bytes": on_the_wire,
            "idle_bytes_a_second": round(idle), "framing_bytes_a_message": round(beside / messages),
        },
    }  # fmt: skip


def _settings(tree: dict[str, Any], out: str) -> dict[str, Any]:
    from capfl.config.keys import flat

    return dict(flat(tree)) | {"out": out}


def _capfl(*words: object) -> list[str]:
    return [sys.executable, "-m", "capfl.cli", "flower", *map(str, words)]


def _start(log: Path, *words: object) -> subprocess.Popen[bytes]:
    with open(log, "wb") as output:
        return subprocess.Popen(_capfl(*words), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


class Meter:
    """Passes on whatever comes to a port of its own, to another one, and counts the bytes of both ways."""

    def __init__(self, target: int) -> None:
        self.target, self.total, self._began = target, 0, time.monotonic()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as far:
            while True:
                for end in select.select([near, far], [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    self.total += len(data)
                    (far if end is near else near).sendall(data)


class Peak:
    """The peak of resident memory of processes and of everything that they have started, looked at every second."""

    def __init__(self, pids: list[int]) -> None:
        self.pids, self._found = pids, dict[str, int]()
        threading.Thread(target=self._watch, daemon=True).start()

    def read(self) -> dict[str, int]:
        """MiB by kind of process, the largest of its kind."""
        return dict(sorted(self._found.items()))

    def _watch(self) -> None:
        while True:
            parents: dict[int, int] = {}
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with suppress(OSError, IndexError, ValueError):
                    parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            for pid in parents:
                above = pid
                while above in parents and above not in self.pids:
                    above = parents[above]
                if above in self.pids:
                    with suppress(OSError, StopIteration):
                        self._note(pid)
            time.sleep(1)

    def _note(self, pid: int) -> None:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        kind = next((word for name in ("link", "node", "work") for word in words if word == name), "")
        pinned = any("pinned" in word for word in words)
        for name in ("flower-superexec", "flwr-serverapp", "flwr-clientapp"):
            if any(word.endswith(name) for word in words):
                kind, pinned = name, True
        label = kind if pinned else f"supervisor of a {kind}"
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
        self._found[label] = max(size, self._found.get(label, 0))


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["virtual", "nodes"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-keep-model", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what == "virtual":
        result = virtual(args.model, args.clients, args.rounds or 3)
    else:
        result = nodes(args.model, args.rounds or 5, not args.no_keep_model)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
