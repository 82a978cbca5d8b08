"""Which layers one pass of gradients would choose, before any training.

    python benchmarks/layers.py CONFIG [--data-dir DIR] [--count 6] [--set key=value ...]

Every client's training items go once through the base with an adapter in every layer (A random, B = 0). A layer's score
is the norm of the gradient of the mean loss by all of its B factors, the root of the mean square over clients. Prints
the scores, and the best layers as a list for ``lora.layers``.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import torch
from torch.nn import functional as F

from capfl.config import load_config
from capfl.data import deal
from capfl.federation import tokenised
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache, Rows
from capfl.model.lora import AdaptedModel

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    given = dict(pair.split("=", 1) for pair in args.set) | {"lora.layers": "all"}
    if args.data_dir:
        given["data.dir"] = args.data_dir
    config = load_config(args.config, given)
    items, splits = deal(config.data, config.partition, config.seed)
    model = AdaptedModel(load_base(config.model), config.lora)
    with HiddenCache(0) as cache:
        squares: dict[int, float] = {}
        for split in splits.values():
            own = tokenised([items[i] for i in split.train], config.data, model)
            for layer, square in gradient_of(model, cache, Rows([example.train for example in own])).items():
                squares[layer] = squares.get(layer, 0.0) + square / len(splits)
    scores = {layer: math.sqrt(square) for layer, square in squares.items()}
    for layer, score in scores.items():
        print(f"layer {layer:2d}: {score:.4f}")
    best = sorted(sorted(scores, key=lambda layer: -scores[layer])[: args.count])
    print("best:", ",".join(map(str, best)))


def gradient_of(model: AdaptedModel, cache: HiddenCache, data: Rows) -> dict[int, float]:
    """By layer: the squared norm of the gradient of one client's mean loss by the B factors."""
    model.write(model.initial_adapter(0))
    factors = {name: p for name, p in model.parameters.items() if name.endswith(".B")}
    for name, p in model.parameters.items():
        p.requires_grad_(name in factors)
        p.grad = None
    total = sum(len(row.targets) for row in data.rows)
    for indices in data.by_length(BATCH):
        batch = data.batch(model, cache, indices)
        loss = F.cross_entropy(model.logits(batch.ids, batch.positions, batch.hidden).float(), batch.targets)
        (loss * (len(batch.targets) / total)).backward()
    found: dict[int, float] = {}
    for name, p in factors.items():
        layer = int(re.search(r"\.(\d+)\.", name).group(1))  # type: ignore[union-attr]
        assert p.grad is not None
        found[layer] = found.get(layer, 0.0) + float(p.grad.square().sum())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
