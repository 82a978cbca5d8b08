"""How many tokens a second an adapter writes, prompts in batches against prompts one by one.

    python benchmarks/generate.py [--model smollm2] [--prompts 16] [--tokens 32] [--batch-sizes 1 4 16] [--json FILE]

Greedy, on `helpdesk` prompts as chats, with a random adapter (r = 8) in all linear layers of the top fifth of the
layers. Each batch size is timed ``--repeats`` times, in turns, after one warm-up; the median counts. Also says whether
all batch sizes wrote the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.data import load_items
from capfl.model.base import load_base
from capfl.model.generate import generate
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import prompt_ids
from capfl.types import Prompt


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = AdaptedModel(load_base(ModelConfig(path=args.model)), LoraConfig())
    generator = torch.Generator().manual_seed(0)
    adapter = {name: 0.02 * torch.randn(p.shape, generator=generator) for name, p in model.parameters.items()}
    items = load_items(DataConfig(sites=2, items=max(12, args.prompts)), 0)[: args.prompts]
    prompts = [
        prompt_ids(Prompt("", ("",), 0, (("user", item.question),)), model.base.tokenizer, 512) for item in items
    ]
    generate(model, adapter, prompts[:1], max_new_tokens=2)  # warm up, untimed
    seconds: dict[int, list[float]] = {size: [] for size in args.batch_sizes}
    written = {}
    for _ in range(args.repeats):
        for size in args.batch_sizes:
            began = time.perf_counter()
            written[size] = generate(model, adapter, prompts, max_new_tokens=args.tokens, batch_size=size)
            seconds[size].append(time.perf_counter() - began)
    tokens = {size: sum(map(len, answers)) for size, answers in written.items()}
    result = {
        "model": args.model,
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "prompts": len(prompts),
        "mean_prompt_tokens": round(statistics.mean(map(len, prompts)), 1),
        "new_tokens": tokens,
        "tokens_per_second": {size: round(tokens[size] / statistics.median(seconds[size]), 1) for size in seconds},
        "same_tokens": len({json.dumps(answers) for answers in written.values()}) == 1,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
