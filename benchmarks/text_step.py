"""Training steps on long answers: tokens a second of the processor, and peak memory, of capfl, Trainer + PEFT and TRL.

    pip install trl
    python benchmarks/text_step.py [--data rows.jsonl] [--layers top:20% all] [--repeats 2] [--out FILE.json]

Contestants, with the same weights, rows, tokens, batch size, optimiser and LoRA (r = 8, all linear layers):

capfl    capfl's local steps: logits at answer positions and in parts, batches of like length, cached lower layers
lean     the same with ``train.checkpointing``, which keeps one state a layer and computes the rest again
trainer  transformers.Trainer + PEFT as its users run them: shuffled batches, labels -100 on the prompt
trl      TRL's SFTTrainer on the same tokens, as its users run it: loss on completions, gradient checkpointing
ordered  Trainer fed with the very batches of ``capfl``: shows that the losses agree step by step

Each contestant runs in a process of its own, which is what its peak memory is of. They take turns, ``--repeats`` times.
Seconds are those of the processor, of all threads, so that other work beside it counts little. Tokens are those of
rows, without padding. Freed memory is kept in capfl's way (``machine.keep_memory``) for capfl and lean, and as usual
for the others. TRL's bf16, on by default, is off for all: the base is in float32.
The time in which capfl fills its cache of lower layers is stated apart: it is paid once for a run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig, TrainConfig
from capfl.data import batches, load_items, render
from capfl.machine import LARGE_PAGES, peak_memory
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import encode
from capfl.model.train import local_steps
from local_step import Labelled, Recorder, collate

RATE = 1e-3
CONTESTANTS = ("capfl", "lean", "trainer", "trl", "ordered")
OURS = ("capfl", "lean")
CAPFL_ENV = {LARGE_PAGES: "1"}  # as importing capfl would say, were it imported before torch
USUAL_ENV = {"GLIBC_TUNABLES": "", LARGE_PAGES: "0"}  # capfl then leaves memory to glibc's and torch's own ways


class Clock(TrainerCallback):
    """When each step was done, in seconds of the processor. The first warms up, and is not counted."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.process_time())


def measure(args: argparse.Namespace, contestant: str, layers: str) -> dict[str, Any]:
    """Seconds, tokens, losses and peak memory of one contestant's steps after the first."""
    base = load_base(ModelConfig(path=args.model))
    data = DataConfig(sets=(str(args.data) if args.data else "replies",), items=args.items, max_length=args.max_length)
    items = load_items(data, 0)[: args.items]
    rows = [encode(render(item, "letter"), "letter", base.tokenizer, args.max_length).train for item in items]
    lengths = [len(row.ids) for row in rows]
    plan: list[list[int]] = []
    for epoch in range(args.steps):
        plan += [list(map(int, batch)) for batch in batches(lengths, args.batch_size, 0, "c", epoch)]
    plan = [batch for batch in plan if len(batch) == args.batch_size][: args.steps]
    torch.manual_seed(0)
    model = AdaptedModel(base, LoraConfig(layers=layers))
    start = model.initial_adapter(0)
    loaded = peak_memory()
    if contestant in OURS:
        config = TrainConfig(learning_rate=RATE, batch_size=args.batch_size, checkpointing=contestant == "lean")
        found = ours(model, Rows(rows), plan, start, config)
    else:
        model.write(start)
        for p in model.parameters.values():
            p.requires_grad_(True)
        found = theirs(contestant, model, rows, plan, args)
    return found | {"memory": peak_memory(), "memory_above_model": peak_memory() - loaded}


def ours(model: AdaptedModel, rows: Rows, plan: list[list[int]], start: Any, config: TrainConfig) -> dict[str, Any]:
    with HiddenCache(2**33) as cache:
        began = time.process_time()
        if model.lowest:
            for indices in rows.by_length(32):
                rows.batch(model, cache, indices)
        filled = time.process_time() - began
        local_steps(model, cache, Job(rows, plan[:1], start), config)
        began = time.process_time()
        losses = local_steps(model, cache, Job(rows, plan, start), config).losses
        seconds = time.process_time() - began
    tokens = sum(rows.lengths[i] for batch in plan for i in batch)
    return {"seconds": seconds, "tokens": tokens, "losses": list(losses), "cache_fill_seconds": filled}


def theirs(
    contestant: str, model: AdaptedModel, rows: Any, plan: list[list[int]], args: argparse.Namespace
) -> dict[str, Any]:
    """A trainer's steps. The model has its LoRA modules, from PEFT, already: all start from the same values."""
    common: dict[str, Any] = {
        "per_device_train_batch_size": args.batch_size, "max_steps": args.steps, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "optim": "adamw_torch",
        "report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 0, "bf16": False,
        "dataloader_pin_memory": False, "dataloader_drop_last": True,
    }  # fmt: skip
    clock, module = Clock(), model.base.module
    with tempfile.TemporaryDirectory() as work:
        if contestant == "trl":
            trainer, seen = sft(module, model, rows, common, work)
        else:
            settings = TrainingArguments(output_dir=work, logging_strategy="no", remove_unused_columns=False, **common)
            trainer = Recorder(model=module, args=settings, train_dataset=Labelled(rows), data_collator=collate)
            trainer.seen = seen = []
            trainer.order = plan if contestant == "ordered" else None
        trainer.add_callback(clock)
        counted = Counted(trainer)
        trainer.train()
    between = clock.times[-1] - clock.times[0]
    return {"seconds": between, "tokens": sum(counted.tokens[1:]), "losses": seen}


class Counted:
    """Counts the tokens of the batches that a trainer computes the loss of."""

    def __init__(self, trainer: Any) -> None:
        self.tokens: list[int] = []
        inner = trainer.compute_loss

        def compute_loss(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            self.tokens.append(int(inputs["attention_mask"].sum()) - len(inputs["input_ids"]))  # the last predicts none
            return inner(model, inputs, *rest, **more)

        trainer.compute_loss = compute_loss


def sft(module: Any, model: AdaptedModel, rows: Any, common: dict[str, Any], work: str) -> tuple[Any, list[float]]:
    from trl import SFTConfig, SFTTrainer

    tokenised = {"input_ids": [], "completion_mask": []}  # type: ignore[var-annotated]
    for item in (Labelled(rows)[i] for i in range(len(rows))):
        tokenised["input_ids"].append(item["input_ids"])
        tokenised["completion_mask"].append([int(label != -100) for label in item["labels"]])
    settings = SFTConfig(output_dir=work, logging_steps=1, max_length=None, **common)
    tokenizer = model.base.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = SFTTrainer(module, args=settings, train_dataset=Dataset.from_dict(tokenised), processing_class=tokenizer)
    seen: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                seen.append(logs["loss"])

    trainer.add_callback(Losses())
    return trainer, seen


def compare(args: argparse.Namespace, layers: str) -> dict[str, Any]:
    """All contestants in turn, each in a process of its own."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    for repeat in range(args.repeats):
        for name in CONTESTANTS if repeat == 0 else CONTESTANTS[:-1]:
            words = [sys.executable, __file__, *sys.argv[1:], "--child", name, layers]
            env = {**os.environ, **(CAPFL_ENV if name in OURS else USUAL_ENV)}
            done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(layers, name, {k: v for k, v in found[name][-1].items() if k != "losses"}, flush=True)
    rates = {name: [run["tokens"] / run["seconds"] for run in runs] for name, runs in found.items()}
    memory = {name: max(run["memory"] for run in runs) for name, runs in found.items()}
    apart = np.abs(np.subtract(found["capfl"][0]["losses"], found["ordered"][0]["losses"]))
    return {
        "layers": layers,
        "tokens_per_second": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "times_as_fast": {
            name: round(statistics.median(a / b for a, b in zip(rates["capfl"], rates[name], strict=False)), 2)
            for name in CONTESTANTS[1:]
        },
        "cache_fill_seconds": round(found["capfl"][0]["cache_fill_seconds"], 2),
        "peak_memory_MB": {name: round(taken / 1e6) for name, taken in memory.items()},
        "peak_memory_above_model_MB": {
            name: round(max(run["memory_above_model"] for run in runs) / 1e6) for name, runs in found.items()
        },
        "largest_loss_difference": float(apart.max()),
        "losses": {name: [round(loss, 4) for loss in runs[0]["losses"]] for name, runs in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="rows of prompts and completions; by default the built-in replies")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--items", type=int, default=96)
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--layers", nargs="*", default=["top:33%", "all"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("NAME", "LAYERS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args, *args.child)))
        return
    result = {
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "peft": peft.__version__},
        "data": args.data.name if args.data else "replies",
        "steps": args.steps,
        "batch_size": args.batch_size,
        "runs": [compare(args, layers) for layers in args.layers],
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
