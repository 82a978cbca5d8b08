"""Peak memory of a run with 1,000 simulated clients against one with 10, each in a process of its own.

    python benchmarks/memory.py [--model smollm2] [--clients 10 1000]

Every client has ten items and takes part in every round; all replies of a round are aggregated. What must not grow
with the number of clients: models, adapters, optimisers, replies. What does grow is the data themselves (their
tokens, a few hundred bytes an item) and the cache of hidden states, which is on disk here, as it is by default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def child(model: str, clients: int) -> None:
    """One run; prints its own peak."""
    from capfl.config import load_config
    from capfl.engines.serial import serial
    from capfl.experiment import run

    with tempfile.TemporaryDirectory() as folder:
        summary, _ = run(load_config(None, {
            "out": str(Path(folder, "run")), "model.path": model, "lora.layers": "top:1",
            "data.sites": 12, "data.items": max(12, clients * 10 // 12 + 1), "partition.kind": "iid",
            "partition.clients": clients, "partition.max_items": 10, "partition.min_items": 10,
            "federation.rounds": 2, "train.steps": 1, "train.batch_size": 4, "evaluation.every": 1,
            "evaluation.personal": True, "evaluation.references": [],
        }), serial)  # fmt: skip
    peak = round(summary.peak_memory / 2**20, 1)
    print(json.dumps({"clients": len(summary.rows), "peak_mib": peak, "seconds": summary.seconds}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, nargs=2, default=[10, 1000])
    parser.add_argument("--child", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.child:
        child(args.model, args.child)
        return
    results = []
    for clients in args.clients:
        command = [sys.executable, __file__, "--model", args.model, "--child", str(clients)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    ratio = results[1]["peak_mib"] / results[0]["peak_mib"]
    text = json.dumps({"model": args.model, "runs": results, "ratio": round(ratio, 4)}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
