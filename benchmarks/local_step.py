"""Items per second of our local step against Hugging Face Trainer + PEFT, in one process, alternating.

    python benchmarks/local_step.py [--model smollm2] [--steps 12] [--repeats 3]

Same weights, same items, same batch size, same optimiser. Three contestants:

ours      capfl's local steps: logits at answer positions, batches of like length, cached lower layers
trainer   Trainer as its users run it: shuffled batches padded to their longest row, labels -100 on the prompt
ordered   Trainer fed with the very batches of ``ours``: shows that the losses agree step by step

The time to fill the cache is measured apart and stated; it is paid once for a run, not once for a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch.utils.data import BatchSampler, DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig, TrainConfig
from capfl.data import batches, load_items, render
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Row, encode
from capfl.model.train import local_steps

LEARNING_RATE = 1e-3


class Labelled(Dataset):  # type: ignore[type-arg]
    """The same rows as Trainer wants them: whole sequences, with labels on the answer only."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        row = self.rows[i]
        ids = [*map(int, row.ids), int(row.targets[-1])]
        n = len(row.targets)
        return {"input_ids": ids, "labels": [-100] * (len(ids) - n) + ids[-n:]}


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(f["input_ids"]) for f in features)

    def pad(key: str, value: int) -> torch.Tensor:
        return torch.tensor([f[key] + [value] * (width - len(f[key])) for f in features])

    mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": mask}


class Recorder(Trainer):
    """Trainer, with the loss of every step kept and, if asked, the batches given."""

    order: list[list[int]] | None = None

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        value = loss[0] if isinstance(loss, tuple) else loss
        self.seen.append(float(value.detach()))
        return loss

    def get_train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        if self.order is None:
            return super().get_train_dataloader()
        sampler: Any = _Given(self.order)
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


class _Given(BatchSampler):
    def __init__(self, order: list[list[int]]) -> None:
        self.order = order

    def __iter__(self) -> Any:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


def with_trainer(args: argparse.Namespace, layers: str, rows: list[Row], start: dict[str, torch.Tensor],
                 plan: list[list[int]], ordered: bool) -> tuple[float, list[float]]:  # fmt: skip
    """Seconds and losses of ``len(plan)`` Trainer steps."""
    base = load_base(ModelConfig(path=args.model))
    config = PeftLoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"],
                            layers_to_transform=_indices(layers, base.module), task_type="CAUSAL_LM")  # fmt: skip
    model = get_peft_model(base.module, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                module, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
                p.copy_(start[f"{module}.{factor[0]}"])
    with tempfile.TemporaryDirectory() as work:
        settings = TrainingArguments(
            output_dir=work, per_device_train_batch_size=args.batch_size, max_steps=len(plan),
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
            optim="adamw_torch", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=True, remove_unused_columns=False, seed=0, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Recorder(model=model, args=settings, train_dataset=Labelled(rows), data_collator=collate)
        trainer.seen = []
        trainer.order = plan if ordered else None
        began = time.perf_counter()
        trainer.train()
        return time.perf_counter() - began, trainer.seen


def _indices(layers: str, module: torch.nn.Module) -> list[int]:
    depth = int(module.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    return list(range(depth - int(layers.removeprefix("top:")), depth)) if layers != "all" else list(range(depth))


def compare(args: argparse.Namespace, layers: str, rows: list[Row]) -> dict[str, Any]:
    model = AdaptedModel(load_base(ModelConfig(path=args.model)), LoraConfig(layers=layers))
    start = model.initial_adapter(0)
    data = Rows(rows)
    config = TrainConfig(learning_rate=LEARNING_RATE, batch_size=args.batch_size)
    plan: list[list[int]] = []
    epoch = 0
    while len(plan) < args.steps:
        plan += [list(map(int, b)) for b in batches(data.lengths, args.batch_size, 0, "c", epoch)]
        epoch += 1
    plan = plan[: args.steps]
    n_items = sum(map(len, plan))
    rates: dict[str, list[float]] = {"ours": [], "trainer": [], "ordered": []}
    losses: dict[str, list[float]] = {}
    with HiddenCache(2**33) as cache:
        began = time.perf_counter()
        if model.lowest:
            for indices in data.by_length(32):
                data.batch(model, cache, indices)
        fill = time.perf_counter() - began
        local_steps(model, cache, Job(data, plan[:2], start), config)  # warm up both, untimed
        with_trainer(args, layers, rows, start, plan[:2], ordered=True)
        for _ in range(args.repeats):
            began = time.perf_counter()
            trained = local_steps(model, cache, Job(data, plan, start), config)
            rates["ours"].append(n_items / (time.perf_counter() - began))
            losses["ours"] = list(trained.losses)
            for name in ("trainer", "ordered"):
                seconds, losses[name] = with_trainer(args, layers, rows, start, plan, ordered=name == "ordered")
                rates[name].append(n_items / seconds)
    apart = [abs(a - b) for a, b in zip(losses["ours"], losses["ordered"], strict=True)]
    ratios = [a / b for a, b in zip(rates["ours"], rates["trainer"], strict=True)]
    return {
        "layers": layers,
        "lowest_layer": model.lowest,
        "items_per_second": {name: round(statistics.median(found), 2) for name, found in rates.items()},
        "ratio_to_trainer": {"median": round(statistics.median(ratios), 2), "all": [round(r, 2) for r in ratios]},
        "ratio_to_ordered": round(statistics.median(rates["ours"]) / statistics.median(rates["ordered"]), 2),
        "cache_fill_seconds_per_item": round(fill / len(rows), 4),
        "largest_loss_difference": max(apart),
        "losses": [round(x, 4) for x in losses["ours"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--items", type=int, default=192)
    parser.add_argument("--layers", nargs="*", default=["top:10", "all"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    items = load_items(DataConfig(sites=2, items=args.items // 2), 0)
    tokenizer = load_base(ModelConfig(path=args.model)).tokenizer
    rows = [encode(render(item, "letter"), "letter", tokenizer, 256).train for item in items]
    result = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch_size": args.batch_size,
        "steps": args.steps,
        "mean_tokens": round(float(np.mean([len(row.ids) for row in rows])), 1),
        "runs": [compare(args, layers, rows) for layers in args.layers],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
