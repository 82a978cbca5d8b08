"""What CA-PFL adds to a client's time: its term of the loss, its fit after a round, and its description of the data.

    python benchmarks/overhead.py [--model smollm2] [--layers top:6] [--steps 6] [--repeats 9]

In one process, alternating, on `helpdesk` items: a round of steps without any extra term, the same with CA-PFL's, and
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
from capfl.methods.capfl import Settings, capfl
from capfl.methods.fedit import fedit

from capfl.config import Config, load_config
from capfl.data import deal
from capfl.federation import Federation
from capfl.model.base import load_base
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.types import ClientState, Trained

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
    with HiddenCache(2**32) as cache:
        federation = Federation(config, items, splits, model, cache)
        client = federation.clients[0]
        plain, ours, anchored = fedit(), capfl(Settings(), 0), capfl(Settings(alpha_f=0.1), 0)
        site = federation.site(client, ours)
        site.train(initial, 1, 0, None)  # fills the cache
        assert site.describe is not None
        notes, describing = timed(site.describe)
        state = ours.init_server(initial)
        memory = replace(ours.init_client(client, initial), known=initial, notes=notes)
        assert ours.brief is not None
        assert ours.heed is not None
        memory = ours.heed(
            ours.brief(state, client) | {"z": torch.ones(256) / 16, "peers": torch.tensor([2.0])}, memory
        )

        for method in (ours, anchored):  # with peers, or else there is no such term to measure
            assert method.penalty is not None
            term = method.penalty(initial, memory)
            moved = {name: factor.detach() + 0.01 for name, factor in initial.items()}
            assert float(term.term(moved, term.constants)) > 0

        def steps(method: Any, memory: ClientState) -> tuple[Trained, float]:
            term = method.penalty(initial, memory) if method.penalty else None
            return timed(lambda: site.train(initial, 1, 0, term))

        contestants = {"plain": plain, "ca-pfl": ours, "ca-pfl, alpha_f 0.1": anchored}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        fitting = []
        for _ in range(args.repeats):
            for name, method in contestants.items():
                trained, taken = steps(method, memory)
                seconds[name].append(taken)
            fitting.append(timed(lambda trained=trained: ours.collect(initial, trained, memory))[1])
    step = statistics.median(seconds["plain"]) / args.steps
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "seconds_per_step": step}
    for name in list(contestants)[1:]:
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
