"""What a run takes by its number of clients: memory, disk, processor time, and how soon it goes on.

    python benchmarks/many_clients.py [--clients 10 100 1000] [--method ca-pfl fedit] [--rounds 3] [--json FILE]

1 % of the clients take part in each round, and at least ten; on the tiny model, with one local step. A client has two
items to train on and one to be tested on, out of those of one of four help desks that all share: what grows with the
number of clients is then what capfl keeps of them. Nobody validates or takes a model home. Each run is in a process of
its own. Memory is the most that was resident, at the end of the rounds and at the end of the run, whose last step asks
all clients at once. Disk is states after the last round: of each client that has taken part (its last two states), of
the server, and the records. Times are of the processor. What is resumed is the finished run: data, model, states and
records are read and checked, and its summary is handed back.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 2**20
COLUMNS = {
    "method": "{}", "clients": "{:,}", "a round": "{}", "rounds, MiB": "{:.1f}", "run, MiB": "{:.1f}",
    "kB a client": "{:.1f}", "server, kB": "{:.0f}", "records, kB": "{:.1f}", "ms a client and round": "{:.0f}",
    "ms a client at the end": "{:.1f}", "resume, s": "{:.2f}",
}  # fmt: skip


def cpu() -> float:
    """Seconds of the processor so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def child(method: str, clients: int, rounds: int) -> dict[str, Any]:
    """One run, and its resumption."""
    from capfl.config import load_config
    from capfl.data import Split, deal
    from capfl.engines.serial import serial
    from capfl.experiment import resume, run
    from capfl.machine import peak_memory
    from capfl.report.progress import Callback
    from capfl.rng import stream

    marks: dict[str, tuple[float, int]] = {}

    class Watch(Callback):
        def mark(self, name: str) -> None:
            marks[name] = cpu(), peak_memory()

        def on_start(self, *given: Any) -> None:
            self.mark("start")

        def on_evaluation(self, *given: Any) -> None:
            self.mark("rounds")

        def on_end(self, *given: Any) -> None:
            self.mark("end")

    with tempfile.TemporaryDirectory() as folder:
        place, per_round = Path(folder, "run"), max(10, clients // 100)
        config = load_config(None, {
            "out": str(place), "model.path": "tiny", "lora.layers": "top:1", "method.name": method,
            "data.sites": 4, "data.items": 60, "federation.rounds": rounds, "federation.fraction": per_round / clients,
            "train.steps": 1, "train.batch_size": 2, "evaluation.every": 0, "evaluation.personal": False,
            "evaluation.references": [], "runtime.threads": 1, "runtime.cache": "off",
        })  # fmt: skip
        items, desks = deal(config.data, config.partition, 0)
        of_desk, splits = [desks[name].all for name in sorted(desks)], {}
        for i in range(clients):
            own = of_desk[i % len(of_desk)]
            chosen = [own[k] for k in stream(0, "items", i).permutation(len(own))[:3]]
            splits[f"client-{i:05d}"] = Split(sorted(chosen[:2]), [], chosen[2:])
        run(config, serial, Watch(), data=(items, splits))
        states = [path for path in (place / "state" / "clients").rglob("*") if path.is_file()]
        began = cpu()
        resume(place, serial, data=(items, splits))
        resumed = cpu() - began
        kept = sum(path.stat().st_size for path in states) / len({path.parent for path in states})
        server = sum(
            path.stat().st_size for path in [place / "state" / "server", *(place / "state" / "groups").iterdir()]
        )
        records = (place / "rounds.jsonl").stat().st_size
    start, last, end = (marks[name] for name in ("start", "rounds", "end"))
    values = (
        method, clients, per_round, last[1] / MIB, end[1] / MIB, kept / 1000, server / 1000, records / 1000,
        1000 * (last[0] - start[0]) / rounds / per_round, 1000 * (end[0] - last[0]) / clients, resumed,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--method", nargs="+", default=["ca-pfl", "fedit"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child[0], int(args.child[1]), args.rounds)))
        return
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for method in args.method:
        for clients in args.clients:
            words = [sys.executable, __file__, "--child", method, str(clients), "--rounds", str(args.rounds)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print("| " + " | ".join(COLUMNS[name].format(value) for name, value in rows[-1].items()) + " |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
