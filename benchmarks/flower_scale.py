"""What Flower costs without its sockets: the serial engine and `capfl flower simulate`, with many clients.

    python benchmarks/flower_scale.py [--model smollm2] [--clients 200] [--rounds 3] [--repeats 1] [--out RESULT.json]

Each run is in a process of its own; the two engines take turns. Seconds a round, seconds of CPU in all and peak memory,
of both and as ratios, and whether what comes out has the same bits. On a machine with other work, look at the CPU's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENGINES = ("serial", "simulate")


def child(engine: str, settings: dict[str, Any]) -> None:
    """One run; prints what it took."""
    from capfl.checkpoint import RunFolder
    from capfl.config import load_config
    from capfl.report.progress import Callback

    config = load_config(None, settings)
    if engine == "serial":
        from capfl.engines.serial import serial
        from capfl.experiment import run

        summary, path = run(config, serial)
    else:
        from capfl.engines.flower.simulation import simulate

        summary, path = simulate(config, False, Callback())
    records, used = RunFolder(path).rounds(), resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "engine": engine,
        "seconds_a_round": round(statistics.median(record.seconds for record in records), 2),
        "seconds": round(summary.seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": summary.peak_memory // 2**20,
        "bytes": {way: summary.total_bytes(way) for way in ("up", "down")},
    }))  # fmt: skip


def alone(engine: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a run takes in a process of its own."""
    command = [sys.executable, __file__, "child", engine, json.dumps(settings)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(model: str, clients: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Every client has ten items and takes part in every round."""
    settings = {
        "model.path": model, "lora.layers": "top:1", "data.sites": 12, "data.items": clients * 10 // 12 + 13,
        "partition.kind": "iid", "partition.clients": clients, "partition.max_items": 10,
        "partition.min_items": 10, "federation.rounds": rounds, "train.steps": 1, "train.batch_size": 4,
        "evaluation.every": 0, "evaluation.references": [], "runtime.threads": 1,
    }  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    same = True
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for engine in ENGINES:
                runs[engine].append(alone(engine, settings | {"out": f"{folder}/{engine}"}))
            one, two = (Path(folder, engine, "state", "server").read_bytes() for engine in ENGINES)
            same &= one == two

    def ratio(figure: str) -> float:
        serial, simulate = (statistics.median(run[figure] for run in runs[engine]) for engine in ENGINES)
        return round(simulate / serial, 3)

    return {
        "model": model, "clients": clients, "rounds": rounds, "same_bits": same,
        "simulate_over_serial": {figure: ratio(figure) for figure in ("seconds_a_round", "cpu_seconds", "peak_mib")},
        "runs": [run for pair in zip(*runs.values(), strict=True) for run in pair],
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = json.dumps(compare(args.model, args.clients, args.rounds, args.repeats), indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
