"""How far capfl is from what the machine allows: the work that cannot be avoided, at the machine's own speed.

    python benchmarks/floor.py [--model smollm2] [--layers top:20%] [--items 48] [--repeats 3] [--json FILE]

Three parts of a run, on the built-in ``replies``, in float32 with one thread:

lower layers   the frozen forward pass below the lowest adapted layer, once for each row of a run
a local step   forward and backward pass of the layers from there up, logits at answer positions, AdamW
answers        greedy decoding of ``--tokens`` new tokens, 16 prompts at once

The floor counts products alone, for tokens without padding. A frozen linear layer with P weights takes 2P operations a
token forwards, and 2P backwards for the gradient of its input; it needs no gradient of its own. Attention takes 2 T d
operations a token and layer forwards, where later tokens are not looked at, and twice that backwards. A factor of the
adapter with P values takes 6P. Each token that is written has all weights read once for its batch, so that
memory may be the limit there.

The machine's speed is measured right before: operations a second of a product of 1,024 rows with a matrix of the
model's size, and bytes a second of a sum over 512 MiB, each the best of five. Seconds are those of the processor. What
is left up to 100 % is padding, softmax, norms, rotary positions, the optimiser, and products that are too small.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn import functional as F

from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig, TrainConfig
from capfl.data import batches, load_items, render
from capfl.model.base import load_base
from capfl.model.generate import generate
from capfl.model.hidden import BLOCK, HiddenCache, Rows
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import encode_all, prompt_ids
from capfl.model.train import local_steps

AT_ONCE = 16  # prompts


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def speed(hidden: int, inner: int) -> tuple[float, float]:
    """Operations and bytes that one thread gets done in a second."""
    x, weight, much = torch.randn(1024, hidden), torch.randn(inner, hidden), torch.ones(2**27)
    product = min(seconds(lambda: [F.linear(x, weight) for _ in range(8)]) for _ in range(5)) / 8
    read = min(seconds(much.sum) for _ in range(5))
    return 2 * 1024 * hidden * inner / product, 4 * much.numel() / read


class Work:
    """Operations of an adapted model that are needed for tokens without padding."""

    def __init__(self, model: AdaptedModel) -> None:
        config = cast(Any, model.base.module).config.get_text_config()
        linear = [
            sum(m.weight.numel() for m in layer.modules() if type(m) is torch.nn.Linear and m not in halves)
            for halves in [set(model.halves.values())]
            for layer in model.layers
        ]
        self.lower, self.upper = sum(linear[: model.lowest]), sum(linear[model.lowest :])
        self.depth, self.lowest = len(linear), model.lowest
        self.adapter = sum(p.numel() for p in model.parameters.values())
        self.head = config.hidden_size * config.vocab_size
        self.width = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )

    def below(self, tokens: int) -> float:
        """Of one row, up to the lowest adapted layer."""
        return 2 * self.lower * tokens + 2 * self.width * tokens**2 * self.lowest

    def step(self, tokens: int, answer: int) -> float:
        """Of one row in a local step, its lower layers being known."""
        attention = 2 * self.width * tokens**2 * (self.depth - self.lowest)
        return (4 * self.upper + 6 * self.adapter) * tokens + 3 * attention + 4 * self.head * answer

    def writing(self, prompt: int, new: int) -> float:
        """Of one prompt and its answer, with keys and values kept."""
        tokens = prompt + new - 1  # the last token is not read
        every = 2 * (self.lower + self.upper + self.adapter)
        return every * tokens + 2 * self.width * tokens**2 * self.depth + 2 * self.head * new

    def bytes_a_token(self) -> float:
        """What is read from memory at least for a new token of all prompts of a batch, in float32."""
        return 4 * (self.lower + self.upper + self.adapter + self.head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", default="top:20%")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = AdaptedModel(load_base(ModelConfig(path=args.model, device="cpu")), LoraConfig(layers=args.layers))
    prompts = [
        render(item, "letter") for item in load_items(DataConfig(sets=("replies",), sites=2, items=args.items // 2), 0)
    ]
    data = Rows([one.train for one in encode_all(prompts, "letter", model.base.tokenizer, 512)])
    asked = [prompt_ids(prompt, model.base.tokenizer, 512) for prompt in prompts[:AT_ONCE]]
    start, work = model.initial_adapter(0), Work(model)
    plan = [list(map(int, batch)) for batch in batches(data.lengths, 8, 0, "client", 0)][: args.steps]
    answers = [len(row.targets) for row in data.rows]
    first = cast(Any, model.layers[0])
    inner = max((m for m in first.modules() if isinstance(m, torch.nn.Linear)), key=lambda m: m.weight.numel())
    operations, read = speed(inner.in_features, inner.out_features)
    written: list[list[int]] = []

    def write() -> None:
        written[:] = generate(model, start, asked, max_new_tokens=args.tokens, batch_size=AT_ONCE)

    with HiddenCache(2**33) as cache:
        blocks = [data.by_length(BLOCK)] if model.lowest else []
        ids = [[data.rows[i].ids for i in block] for made in blocks for block in made]
        below = [seconds(lambda: [HiddenCache(0).block(model, block) for block in ids]) for _ in range(args.repeats)]
        config = TrainConfig(batch_size=8)
        local_steps(model, cache, Job(data, plan, start), config)  # fills the cache, untimed
        steps = [
            seconds(lambda: local_steps(model, cache, Job(data, plan, start), config)) for _ in range(args.repeats)
        ]
        writes = [seconds(write) for _ in range(args.repeats)]
    new = [min(args.tokens, len(one) + 1) for one in written]
    rows = [i for batch in plan for i in batch]
    parts = {
        "lower layers": (sum(map(work.below, data.lengths)) if model.lowest else 0.0, 0.0, below),
        "a local step": (sum(work.step(data.lengths[i], answers[i]) for i in rows) / len(plan), 0.0,
                         [one / len(plan) for one in steps]),
        "answers": (sum(work.writing(len(a), n) for a, n in zip(asked, new, strict=True)),
                    work.bytes_a_token() * max(new), writes),
    }  # fmt: skip
    print(f"{args.model}, LoRA on {args.layers}; this core: {operations / 1e9:.0f} GFLOP/s, {read / 1e9:.1f} GB/s\n")
    print("| part | GFLOP | GB read at least | floor, s | took, s | share of the floor |\n|---|---|---|---|---|---|")
    table = []
    for name, (flop, n_bytes, taken) in parts.items():
        floor, took = max(flop / operations, n_bytes / read), statistics.median(taken)
        table.append(
            {"part": name, "gflop": flop / 1e9, "gb": n_bytes / 1e9, "floor": floor, "took": took, "all": taken}
        )
        memory = f"{n_bytes / 1e9:.1f}" if n_bytes else ""
        print(f"| {name} | {flop / 1e9:.1f} | {memory} | {floor:.2f} | {took:.2f} | {100 * floor / took:.0f} % |")
    if args.json:
        found = {"gflops": operations / 1e9, "gb_a_second": read / 1e9, "layers": args.layers, "parts": table}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
