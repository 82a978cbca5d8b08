"""capfl against FlowerTune, Flower's template for language models, and NVIDIA FLARE: the same job, as users run it.

    pip install trl ray==2.55.1 nvflare==2.9.0
    python benchmarks/flowertune.py [--model smollm2] [--clients 4] [--rounds 3] [--steps 4] [--out FILE.json]

Contestants, with the same rows, tokens, LoRA, starting values, optimiser, learning rate, steps and averages:

capfl         `capfl run`: FedAvg of A and B (fedit), with the default codec
capfl-dense   the same, with every value sent in float32, as Flower sends it
capfl-flower  the same as capfl over `capfl flower`: a server and a node for each client, over TLS, on this machine
flowertune    SFTTrainer and PEFT in a ClientApp, FedAvg in a ServerApp, Flower's simulation engine: flowertune_app.py
flowertune-no-checkpointing  the same without gradient checkpointing, which the template turns on: faster, more memory
nvflare       SFTTrainer and PEFT, patched by NVIDIA FLARE's client API, in its simulator, with all
              clients at the same time: nvflare_app.py

Each contestant runs in a process of its own, one after the other. Seconds of the first round and of a later one (the
median) are those between the server's first request and its new adapter; "cpu" are seconds of the processor (user) of
all processes. Memory is the most that all processes of a contestant have at the same time, as the sum of their
proportional set sizes (PSS), looked at every two seconds. Bytes are those of the arrays (Flower, FLARE) or of whole
messages (capfl), a client and round, without what Flower and FLARE add. The validation loss is that of the server's
last adapter on the validation rows of all clients, by the same function for all.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

CONTESTANTS = ("capfl", "capfl-dense", "capfl-flower", "flowertune", "flowertune-no-checkpointing", "nvflare")
USUAL = ("capfl", "capfl-dense", "flowertune", "flowertune-no-checkpointing")
COLUMNS = {
    "start": "until round 1, s", "first": "round 1, s", "later": "a later round, s", "first_cpu": "round 1, cpu s",
    "later_cpu": "a later round, cpu s", "memory": "peak memory, MiB", "up": "bytes up", "down": "bytes down",
    "train_loss": "training loss, last round", "validation_loss": "validation loss",
}  # fmt: skip
LOOK_EVERY = 2.0  # seconds between two looks at memory
WITHIN = 3600.0  # seconds for nodes to get ready, and for a run over them


# -- what a contestant's rounds come to ----------------------------------------------------------------------------


def figures(rounds: Sequence[dict[str, float]], launched: float) -> dict[str, float]:
    """Figures of a contestant from what it noted of each round: began, ended, cpu_before, cpu_after, up, down, loss.

    Args:
        launched: when its process was started, on the clock of ``began``.
    """
    seconds = [noted["ended"] - noted["began"] for noted in rounds]
    cpu = [noted["cpu_after"] - noted["cpu_before"] for noted in rounds]
    later = slice(1, None) if len(rounds) > 1 else slice(None)
    return {
        "start": rounds[0]["began"] - launched,
        "first": seconds[0],
        "later": statistics.median(seconds[later]),
        "first_cpu": cpu[0],
        "later_cpu": statistics.median(cpu[later]),
        "up": statistics.mean(noted["up"] for noted in rounds),
        "down": statistics.mean(noted["down"] for noted in rounds),
        "train_loss": rounds[-1]["loss"],
    }


def ratios(found: dict[str, dict[str, float]], against: str) -> dict[str, dict[str, float]]:
    """How many times as much of everything a contestant takes as each of the others. Losses are no amounts."""
    amounts = [name for name in COLUMNS if not name.endswith("loss")]
    base = found[against]
    return {
        name: {amount: round(base[amount] / own[amount], 2) for amount in amounts if own[amount] > 0}
        for name, own in found.items()
        if name != against
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """The figures as a table of Markdown, a row for each contestant."""

    def shown(name: str, value: float) -> str:
        if name in ("up", "down", "memory"):
            return f"{value:,.0f}"
        return f"{value:.3f}" if name.endswith("loss") else f"{value:.1f}"

    rows = [["", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS))]
    rows += [[name, *(shown(column, own[column]) for column in COLUMNS)] for name, own in found.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# -- what processes take -----------------------------------------------------------------------------------------------


def family(parent: int) -> list[psutil.Process]:
    """A process and all below it that are there now."""
    try:
        one = psutil.Process(parent)
        return [one, *one.children(recursive=True)]
    except psutil.Error:
        return []


class Cpu:
    """Seconds of the processor (user) of a process (this one) and all below it, those that have ended included.

    Of one that has ended counts what was seen last.
    """

    def __init__(self, parent: int | None = None) -> None:
        self.parent = os.getpid() if parent is None else parent
        self.seen: dict[tuple[int, float], float] = {}

    def __call__(self) -> float:
        for process in family(self.parent):
            with contextlib.suppress(psutil.Error):
                self.seen[process.pid, process.create_time()] = process.cpu_times().user
        return sum(self.seen.values())


class Peak(threading.Thread):
    """The most memory that a process and all below it have at the same time: the sum of their PSS, in bytes."""

    def __init__(self, parent: int) -> None:
        super().__init__(daemon=True)
        self.parent, self.ended = parent, threading.Event()
        self.most, self.parts = 0, dict[str, int]()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(LOOK_EVERY):
            parts: dict[str, int] = {}
            for process in family(self.parent):
                with contextlib.suppress(psutil.Error, OSError):
                    name = process.name().split(":")[0]
                    parts[name] = parts.get(name, 0) + process.memory_full_info().pss
            if sum(parts.values()) > self.most:
                self.most, self.parts = sum(parts.values()), parts

    def stop(self) -> None:
        self.ended.set()
        self.join()


# -- contestants, each in a process of its own ------------------------------------------------------------------------


def child(job: Any, contestant: str, workers: int, place: Path) -> list[dict[str, float]]:
    """Run the job, leave the adapter in ``place``, and return what was noted of each round."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(job.threads)
    cpu = Cpu()
    if contestant.startswith("flowertune"):
        from flowertune_app import simulate
        from flowertune_job import from_peft

        rounds, final = simulate(job, contestant == "flowertune", workers, cpu)
        adapter = from_peft(final)
    elif contestant == "nvflare":
        from flowertune_job import from_peft
        from nvflare_app import simulate as flare

        rounds, final = flare(job, place)
        adapter = from_peft(final)
    else:
        from capfl.model.export import load_adapter
        from flowertune_job import CODECS

        run = over_nodes if contestant == "capfl-flower" else in_process
        rounds = run(job.config(place / "run", CODECS.get(contestant)), cpu, place)
        adapter, _ = load_adapter(place / "run" / "adapters" / "global")
    save_file({name: t.contiguous() for name, t in adapter.items()}, place / "adapter.safetensors")
    return rounds


def noted(record: Any, ended: float, before: float, after: float) -> dict[str, float]:
    """What counts of a round of capfl's that has just ended."""
    n = len(record.clients)
    return {
        "began": ended - record.seconds, "ended": ended, "cpu_before": before, "cpu_after": after,
        "loss": record.loss, "up": record.bytes_up / n, "down": record.bytes_down / n,
    }  # fmt: skip


def in_process(config: Any, cpu: Cpu, place: Path) -> list[dict[str, float]]:
    """As `capfl run` does it."""
    from capfl.engines.serial import serial
    from capfl.experiment import run
    from capfl.report.progress import Callback

    rounds: list[dict[str, float]] = []

    class Watch(Callback):
        before = 0.0

        def on_start(self, *_: Any) -> None:
            self.before = cpu()

        def on_round(self, record: Any) -> None:
            after = cpu()
            rounds.append(noted(record, time.time(), self.before, after))
            self.before = after

    run(config, serial, Watch())
    return rounds


def over_nodes(config: Any, cpu: Cpu, place: Path) -> list[dict[str, float]]:
    """As `capfl flower server`, `node` and `run` do it, all on this machine."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from capfl.checkpoint import RunFolder
    from capfl.config import to_toml
    from deployment import Network, end, wait_for

    network, rounds = Network(place), list[dict[str, float]]()
    files = {Path(name).stem: Path(name) for name in config.data.sets}
    (place / "run.toml").write_text(to_toml(config), encoding="utf-8")
    try:
        network.start_server(files)
        for client, path in files.items():
            network.start_node(client, path)
        going, before, history = network.run("out", place / "run.toml"), cpu(), RunFolder(place / "run").history
        while going.process.poll() is None:
            for record in history.read()[0][len(rounds) :]:
                after = cpu()
                rounds.append(noted(record, time.time(), before, after))
                before = after
            cpu()
            time.sleep(0.1)
        if going.ended(WITHIN):
            raise RuntimeError(going.said())
        wait_for(lambda: len(rounds) == config.federation.rounds, 1.0, "the rounds")
    finally:
        end(network.started)
    return rounds


def validation_loss(job: Any, path: Path) -> float:
    """Mean loss in nats a token of an adapter on the validation rows of all clients."""
    from safetensors.torch import load_file

    from capfl.config.schema import ModelConfig
    from capfl.model.base import load_base
    from capfl.model.hidden import HiddenCache
    from capfl.model.lora import AdaptedModel
    from capfl.model.score import Scorable, score

    model = AdaptedModel(load_base(ModelConfig(path=job.model)), job.lora())
    held_out = [example for own in job.examples("validation").values() for example in own]
    with HiddenCache(2**30) as cache:
        return score(model, cache, Scorable(held_out), load_file(path), 8).loss.mean


# -- the comparison ----------------------------------------------------------------------------------------------------


def measure(job: Any, contestant: str, workers: int) -> dict[str, float]:
    """One contestant's figures, from a process of its own; its loss from another one."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    quiet |= {"RAY_worker_niceness": "0"}  # Ray's own 15 would make its actors wait for whatever else the machine does
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | quiet | {"OMP_NUM_THREADS": str(job.threads), "FLWR_HOME": folder}

        def start(*words: str) -> subprocess.Popen[str]:
            given = [json.dumps(dataclasses.asdict(job)), contestant, str(workers), folder]
            command = [sys.executable, __file__, "--child", *words, *given]
            return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, text=True)

        def ended(process: subprocess.Popen[str], what: str) -> Any:
            if process.wait():
                raise SystemExit(f"{contestant}, {what}, failed:\n{Path(folder, 'log').read_text()[-4000:]}")
            return json.loads(Path(folder, what).read_text())

        with open(Path(folder, "log"), "w") as log:
            launched = time.time()
            process = start("rounds")
            peak = Peak(process.pid)
            rounds = ended(process, "rounds")
            peak.stop()
            print(contestant, {name: part // 2**20 for name, part in peak.parts.items()}, flush=True)
            found = figures(rounds, launched) | {"memory": peak.most / 2**20}
            return found | {"validation_loss": ended(start("loss"), "loss")}


def run_child(what: str, given: str, contestant: str, workers: str, place: str) -> None:
    from flowertune_job import Job

    job = Job(**json.loads(given))
    found: Any
    if what == "loss":
        found = validation_loss(job, Path(place, "adapter.safetensors"))
    else:
        found = child(job, contestant, int(workers), Path(place))
    Path(place, what).write_text(json.dumps(found))


def median_of(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several runs of one contestant, the median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2 or a folder")
    parser.add_argument("--layers", default="top:20%", help="adapted layers, as capfl's lora.layers")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of a client in a round")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rows", type=int, help="that a client trains on; by default those of a round")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process that trains")
    parser.add_argument("--workers", type=int, default=1, help="clients that Flower trains at the same time")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(USUAL), metavar="NAME")
    parser.add_argument("--out", type=Path, help="file for figures as JSON")
    return parser.parse_args(words)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
        return
    args = parsed()
    from flowertune_job import Job

    rows = args.rows or args.steps * args.batch_size
    with tempfile.TemporaryDirectory() as place:
        job = Job(place, args.model, args.layers, args.clients, args.rounds, args.steps, args.batch_size, rows,
                  threads=args.threads, seed=args.seed)  # fmt: skip
        job.write_rows()
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.contestants}
        for _ in range(args.repeats):
            for name in args.contestants:
                runs[name].append(measure(job, name, args.workers))
                print(name, {key: round(value, 3) for key, value in runs[name][-1].items()}, flush=True)
                found = {one: median_of(own) for one, own in runs.items() if own}
                if args.out:
                    args.out.write_text(json.dumps(result(found, runs), indent=1) + "\n", encoding="utf-8")
    print(table(found))
    print(json.dumps(result(found, runs)["times_as_much"], indent=1))


def versions() -> dict[str, str]:
    """Those of the packages that count, of as many as are installed: not every contestant needs all."""
    found = {}
    for name in ("flwr", "ray", "nvflare", "trl", "peft", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def result(found: dict[str, dict[str, float]], runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """All that is kept of a comparison, for JSON."""
    return {
        "command": " ".join(["python", "benchmarks/flowertune.py", *sys.argv[1:]]),
        "versions": versions(),
        "figures": {name: {key: round(value, 3) for key, value in own.items()} for name, own in found.items()},
        "times_as_much": {name: ratios(found, name) for name in found if not name.startswith("capfl")},
        "runs": runs,
    }


if __name__ == "__main__":
    main()
