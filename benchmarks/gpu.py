"""All checks of a GPU, in one run of a few minutes: results against the CPU, precisions, speed and memory.

    python benchmarks/gpu.py [--model smollm2] [--rows 2] [--steps 8]
    python benchmarks/gpu.py --device cpu --model tiny --skip compiled   # the script itself, on any machine

Clients are the sites of the built-in data, with ``--rows`` items in a step. Everything is compared with local steps of
the same clients on the CPU in float32. Prints a table; the exit status is 0 if all checks pass, 1 if one does not, and
2 if there is no such device.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from capfl import adapter as algebra
from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig, TrainConfig
from capfl.data import load_items, render
from capfl.errors import CapflError, TrainingError
from capfl.federation import asked_of
from capfl.machine import peak_memory
from capfl.model.base import load_base
from capfl.model.generate import generate
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.lot import steps_together
from capfl.model.per_row import check_rows
from capfl.model.tokens import encode
from capfl.model.train import local_steps
from capfl.types import Trained

CONFIG = TrainConfig(learning_rate=1e-3)
TEXTS = DataConfig(sets=("replies",), sites=2, items=12)
NEW_TOKENS = 24
LOSS_APART = {"float32": 1e-3, "bfloat16": 0.03, "8bit": 0.1, "4bit": 0.3}
"""By which the mean loss may differ from that of the CPU in float32, relative to it."""
ADAPTER_APART = 0.05  # by which what training adds may differ in float32, relative to its norm: Adam enlarges rounding


@dataclass
class Bench:
    """A device to be checked, and the clients."""

    args: argparse.Namespace

    def model(self, dtype: str = "float32", quantization: str = "none", device: str | None = None) -> AdaptedModel:
        given: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "device": device or self.args.device}
        return AdaptedModel(load_base(ModelConfig(path=self.args.model, **given)), LoraConfig(layers=self.args.layers))

    def jobs(self, model: AdaptedModel) -> list[Job]:
        """Local steps of every client, from one adapter."""
        n, start, sites = self.args.rows, model.initial_adapter(0), dict[str, list[Any]]()
        data = DataConfig(sets=("helpdesk",), sites=self.args.clients, items=max(12, n * self.args.steps))
        for item in load_items(data, 0):
            row = encode(render(item, "letter"), "letter", model.base.tokenizer, 256).train
            sites.setdefault(item.fields["site"], []).append(row)
        plan = [[n * step + i for i in range(n)] for step in range(self.args.steps)]
        return [Job(Rows(rows), plan, start) for rows in sites.values()]

    @cached_property
    def reference(self) -> list[Trained]:
        """What two of the clients learn on the CPU in float32."""
        model, cache = self.model(device="cpu"), HiddenCache(2**33)
        return [local_steps(model, cache, job, CONFIG) for job in self.jobs(model)[:2]]

    def written(self, model: AdaptedModel) -> list[list[int]]:
        """Greedy answers to some prompts, by the adapter that the first client has learnt on the CPU."""
        asked = [one.prompt for one in asked_of(load_items(TEXTS, 0)[:8], TEXTS, model)]
        return generate(model, self.reference[0].adapter, asked, max_new_tokens=NEW_TOKENS, batch_size=4)

    def timed(self, work: Callable[[HiddenCache], list[Trained]]) -> tuple[list[Trained], float]:
        """What local steps give, and seconds; hidden states are there and everything has been run once before."""
        cache = HiddenCache(2**33)
        work(cache)
        began = self.clock()
        found = work(cache)  # the last loss has been waited for
        return found, self.clock() - began

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds; of this process alone where the CPU does the work, which others may share."""
        return time.process_time if self.args.device == "cpu" else time.perf_counter


Row = tuple[str, str, bool]
"""What was checked, what was found, and whether it is as it should be."""


def placed(bench: Bench) -> list[Row]:
    """Base, adapter and batches are on the device."""
    model = bench.model()
    job, cache = bench.jobs(model)[0], HiddenCache(2**33)
    local_steps(model, cache, job, CONFIG)
    batch = job.data.batch(model, cache, [0, 1])
    parts = [*model.base.module.parameters(), *model.base.module.buffers(), batch.ids, batch.positions, batch.targets]
    parts += [] if batch.hidden is None else [batch.hidden]
    elsewhere = {str(t.device) for t in parts if t.device.type != bench.args.device}
    return [("placed", f"{len(parts)} tensors on {bench.args.device}, others on {elsewhere or 'none'}", not elsewhere)]


def precisions(bench: Bench) -> list[Row]:
    """Losses of every precision against the CPU's, speed of one client at a time, memory."""
    rows = []
    for dtype, bits in (("float32", "none"), ("bfloat16", "none"), ("bfloat16", "8bit"), ("bfloat16", "4bit")):
        name = dtype if bits == "none" else bits
        if bits in bench.args.skip:
            continue
        _reset_peak(bench)
        model = bench.model(dtype, bits)
        jobs = bench.jobs(model)[:2]
        found, seconds = bench.timed(partial(_one_by_one, model, jobs))
        apart = _losses_apart(found, bench.reference)
        text = f"loss {apart:.1e} from the CPU's, {_speed(jobs, seconds)}, peak {_peak(bench)}"
        ok = apart <= LOSS_APART[name]
        if name == "float32":
            moved = max(_adapters_apart(a, b, jobs[0]) for a, b in zip(found, bench.reference, strict=True))
            text, ok = f"{text}, adapter {moved:.1e}", ok and moved <= ADAPTER_APART
        rows.append((name, text, ok))
    return rows


def passes(bench: Bench) -> list[Row]:
    """One client in a pass against several, in float32."""
    model = bench.model()
    check_rows(model)
    jobs = bench.jobs(model)
    alone, seconds = bench.timed(partial(_one_by_one, model, jobs))
    rows: list[Row] = [("clients per pass 1", _speed(jobs, seconds), True)]
    for size in bench.args.clients_per_pass:
        _reset_peak(bench)
        found, own = bench.timed(partial(_together, model, jobs, size))
        apart = _losses_apart(found, alone)
        moved = max(_adapters_apart(a, b, jobs[0]) for a, b in zip(found, alone, strict=True))
        text = f"{_speed(jobs, own)}, {seconds / own:.2f} times as fast, peak {_peak(bench)}"
        text += f"; loss {apart:.1e} and adapter {moved:.1e} from one at a time"
        rows.append((f"clients per pass {size}", text, apart <= LOSS_APART["float32"] and moved <= ADAPTER_APART))
    return rows


def compiled(bench: Bench) -> list[Row]:
    """The same with compiled layers, in float32."""
    model = bench.model()
    jobs = bench.jobs(model)[:2]
    work = partial(_one_by_one, model, jobs)
    plain, seconds = bench.timed(work)
    began = time.perf_counter()
    model.compile()
    first = time.perf_counter() - began
    found, own = bench.timed(work)
    apart = _losses_apart(found, plain)
    text = f"{_speed(jobs, own)}, {seconds / own:.2f} times as fast; compiling took {first:.0f} s"
    text += f"; loss {apart:.1e} from that without"
    return [("compiled", text, apart <= LOSS_APART["float32"])]


def generation(bench: Bench) -> list[Row]:
    """Greedy answers, token for token."""
    wanted = bench.written(bench.model(device="cpu"))
    model = bench.model()
    bench.written(model)
    began = bench.clock()
    found = bench.written(model)
    seconds = bench.clock() - began
    tokens = sum(len(answer) for answer in found)
    same = sum(a == b for a, b in zip(found, wanted, strict=True))
    text = f"{tokens / seconds:,.0f} tokens/s; {same} of {len(found)} answers are the CPU's"
    return [("generation", text, same >= len(found) - 1)]  # near ties may go either way


CHECKS: dict[str, Callable[[Bench], list[Row]]] = {
    "placed": placed, "precisions": precisions, "passes": passes, "generation": generation, "compiled": compiled,
}  # fmt: skip


def _one_by_one(model: AdaptedModel, jobs: Sequence[Job], cache: HiddenCache) -> list[Trained]:
    return [local_steps(model, cache, job, CONFIG) for job in jobs]


def _together(model: AdaptedModel, jobs: Sequence[Job], size: int, cache: HiddenCache) -> list[Trained]:
    found: list[Trained] = []
    for i in range(0, len(jobs), size):
        for result in steps_together(model, cache, jobs[i : i + size], CONFIG):
            if isinstance(result, TrainingError):
                raise result
            found.append(result)
    return found


def _losses_apart(found: Sequence[Trained], wanted: Sequence[Trained]) -> float:
    pairs = [(sum(a.losses), sum(b.losses)) for a, b in zip(found, wanted, strict=True)]
    return max(abs(a - b) / b for a, b in pairs)


def _adapters_apart(found: Trained, wanted: Trained, job: Job) -> float:
    moved = algebra.norm(algebra.subtract(wanted.adapter, job.start))
    return algebra.norm(algebra.subtract(found.adapter, wanted.adapter)) / moved


def _speed(jobs: Sequence[Job], seconds: float) -> str:
    tokens = sum(job.data.lengths[i] for job in jobs for batch in job.plan for i in batch)
    return f"{tokens / seconds:,.0f} tokens/s"


def _reset_peak(bench: Bench) -> None:
    if bench.args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(bench: Bench) -> str:
    used = torch.cuda.max_memory_allocated() if bench.args.device == "cuda" else peak_memory()
    return f"{used / 2**20:,.0f} MiB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", default="top:20%")
    parser.add_argument("--clients", type=int, choices=range(2, 13), default=8)
    parser.add_argument("--rows", type=int, default=2, help="items of a client in a step")
    parser.add_argument("--steps", type=int, default=8, help="steps of a client")
    parser.add_argument("--clients-per-pass", type=int, nargs="+", default=[8])
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--skip", nargs="+", choices=[*CHECKS, "8bit", "4bit"], default=[])
    bench = Bench(parser.parse_args())
    if bench.args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here, so nothing was checked; --device cpu --model tiny tries the script itself")
        return 2
    name = torch.cuda.get_device_name() if bench.args.device == "cuda" else "the CPU"
    print(f"{name}, torch {torch.__version__}, {bench.args.model}, {bench.args.rows} rows in a step")
    began, good = time.perf_counter(), True
    for check in (check for check in bench.args.only if check not in bench.args.skip):
        try:
            rows = CHECKS[check](bench)
        except (CapflError, RuntimeError, ImportError) as error:
            rows = [(check, f"{type(error).__name__}: {str(error).splitlines()[0]}", False)]
        for what, text, ok in rows:
            good &= ok
            print(f"{'ok' if ok else 'FAIL':4}  {what:20}  {text}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
