"""What CA-PFL adds to a client's time: its regulariser, its fit after a round, and its description of the data.

    python benchmarks/overhead.py [--model smollm2] [--layers top:6] [--steps 6] [--repeats 9]

In one process, alternating, on `helpdesk` items: a round of steps by itself, the same with CA-PFL's regulariser, and
the same with CA-PFL's and the proximal one. Prints each as a ratio to the first, median over repeats with the 10th and
90th percentile, and the fit and the description in units of one step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from capfl import adapter as algebra
from capfl.config import Config, load_config
from capfl.config.schema import MethodConfig
from capfl.data import deal
from capfl.federation import Federation
from capfl.methods import build
from capfl.methods.peers import Description, PeersMemory
from capfl.methods.posterior import PosteriorMemory
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import opened, received
from capfl.types import ClientState

ALL_LINEAR = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", default="top:6")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config: Config = load_config(None, {
        "model.path": args.model, "lora.layers": args.layers, "lora.targets": ALL_LINEAR.split(","),
        "train.steps": args.steps, "data.items": 64, "data.sites": 2,
    })  # fmt: skip
    items, splits = deal(config.data, config.partition, 0)
    model = AdaptedModel(load_base(config.model), config.lora)
    initial = model.initial_adapter(0)
    ours, anchored = build(MethodConfig(name="ca-pfl")), build(MethodConfig(name="ca-pfl", alpha_f=0.1))
    with HiddenCache(2**32) as cache:
        federation = Federation(config, items, splits, model, cache)
        client = federation.clients[0]
        trainer = federation.trainer(client, ours)
        trainer.train(initial, 1, 0, None)  # fills the cache
        assert trainer.describe is not None
        said, describing = timed(trainer.describe)

        # a client that has been sent its first message and has a peer, or else there is no regulariser to measure
        agreed = Agreement(ours, config.codec, initial)
        request = server.request(ours.start(initial, federation.clients), client, agreed)
        memory = received(opened(request.blob, trainer, agreed), ClientState(client), agreed)
        assert isinstance(said, Description)
        assert isinstance(memory.ranks, PosteriorMemory)
        memory = replace(memory, grouping=PeersMemory(torch.ones(256) / 16, n_peers=2))
        penalties = {
            "plain": None,
            "ca-pfl": ours.penalty(memory, trainer.n_train),
            "ca-pfl, alpha_f 0.1": anchored.penalty(memory, trainer.n_train),
        }
        moved = {name: factor.detach() + 0.01 for name, factor in initial.items()}
        after = [one.step(moved, one.constants, 1.0) for one in penalties.values() if one]
        assert len(after) == 2
        distances = [algebra.norm(algebra.subtract(moved, one)) for one in after]
        assert 0 < distances[0] < distances[1]

        seconds: dict[str, list[float]] = {name: [] for name in penalties}
        fitting = []
        for _ in range(args.repeats):
            for name, penalty in penalties.items():
                trained, taken = timed(lambda penalty=penalty: trainer.train(initial, 1, 0, penalty))
                seconds[name].append(taken)
            fitting.append(timed(lambda trained=trained: ours.ranks.learn(trained, memory, trainer.n_train))[1])
    step = statistics.median(seconds["plain"]) / args.steps
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "seconds_per_step": step}
    for name in list(penalties)[1:]:
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
        tenth = len(ratios) // 10
        found[name] = {"median": statistics.median(ratios), "low": ratios[tenth], "high": ratios[-1 - tenth]}
    found["fit, in steps"] = statistics.median(fitting) / step
    found["description, in steps, once"] = describing / step
    found["items described"] = len(splits[client].train)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
