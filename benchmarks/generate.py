"""How many tokens an adapter writes in a second of the processor: prompts in batches against prompts one by one.

    python benchmarks/generate.py [--model smollm2] [--prompts 16] [--tokens 32] [--batch-sizes 1 4 16] [--json FILE]
    python benchmarks/generate.py --adapter FOLDER --data FILE ...

Greedy. Without ``--adapter``: `helpdesk` prompts as chats, with a random adapter (r = 8) in all linear layers of the
top fifth of the layers, whose answers do not end. With it: rows of a file, whose answers end. Then each batch size is
timed twice: rows that have ended leave their batch, or ``stay`` to its end. Each is timed ``--repeats`` times, in
turns, after one warm-up; the median counts. Also says whether all wrote the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from capfl.config import Config
from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.data import load_items, render
from capfl.model import generate as generating
from capfl.model.base import load_base
from capfl.model.generate import generate
from capfl.model.lora import AdaptedModel
from capfl.model.text import Ids
from capfl.model.together import together
from capfl.model.tokens import prompt_ids
from capfl.scoring import open_adapter
from capfl.types import Adapter, Prompt

_UNCUT = 10**6  # tokens of a prompt
STAY = "stay"
WAYS = {"": together, STAY: lambda base: replace(together(base), leave=False)}


def asked(args: argparse.Namespace) -> tuple[AdaptedModel, Adapter, list[Ids]]:
    """A model, an adapter, and the prompts that it is to answer."""
    if args.adapter:
        loaded = open_adapter(args.adapter, Config())
        data = loaded.data.model_copy(update={"sets": (str(args.data),)})
        rows = load_items(data, 0)[args.skip :][: args.prompts]
        tokenizer = loaded.model.base.tokenizer
        return loaded.model, loaded.adapter, [prompt_ids(render(row, "letter"), tokenizer, _UNCUT) for row in rows]
    model = AdaptedModel(load_base(ModelConfig(path=args.model)), LoraConfig())
    generator = torch.Generator().manual_seed(0)
    adapter = {name: 0.02 * torch.randn(p.shape, generator=generator) for name, p in model.parameters.items()}
    items = load_items(DataConfig(sites=2, items=max(12, args.prompts)), 0)[: args.prompts]
    chats = [Prompt("", ("",), 0, (("user", item.question),)) for item in items]
    return model, adapter, [prompt_ids(chat, model.base.tokenizer, 512) for chat in chats]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--adapter", type=Path, help="folder of an adapter that writes")
    parser.add_argument("--data", type=Path, help="file of rows that it answers")
    parser.add_argument("--skip", type=int, default=0, help="rows of the file before those that it answers")
    args = parser.parse_args()
    model, adapter, prompts = asked(args)
    generate(model, adapter, prompts[:1], max_new_tokens=2)  # warm up, untimed
    ways = WAYS if args.adapter else {"": WAYS[""]}
    contestants = {f"{size} {way}".strip(): (size, way) for size in args.batch_sizes for way in ways}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    written = {}
    for _ in range(args.repeats):
        for name, (size, way) in contestants.items():
            generating.allowed = ways[way]
            began = time.process_time()
            written[name] = generate(model, adapter, prompts, max_new_tokens=args.tokens, batch_size=size)
            seconds[name].append(time.process_time() - began)
    tokens = {name: sum(map(len, answers)) for name, answers in written.items()}
    result = {
        "model": model.base.name,
        "data": args.data.name if args.data else "helpdesk",
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "prompts": len(prompts),
        "mean_prompt_tokens": round(statistics.mean(map(len, prompts)), 1),
        "new_tokens": tokens,
        "tokens_per_processor_second": {
            name: round(tokens[name] / statistics.median(seconds[name]), 1) for name in seconds
        },
        "same_tokens": len({json.dumps(answers) for answers in written.values()}) == 1,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
