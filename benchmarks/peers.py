"""How long groups of peers take to be found, in how much memory, and who is placed right, with and without liars.

    python benchmarks/peers.py [--clients 10,100,1000,10000] [--json docs/results/peers.json]

Without a model: descriptions are drawn as those of SmolLM2 are, 576 features of prompts and 1,152 bound to answers.
Every client has 20 to 60 items, whose states differ by 20 independent directions. A kind of clients has prompts of its
own; every second kind shares its prompts with the kind before, and answers them by another rule. One client in ten is
of no kind. Liars are of five sorts, see ``LIES``. A client is placed right that is with all others of its kind, and
with no honest client of another; one that is of no kind should be with no honest client.

For each number of clients, in a process of its own: all at once, and 1 % a round (at least one) after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from capfl.methods import Method
from capfl.methods.peers import Description, Peers
from capfl.packing import pack
from capfl.types import ClientId, Introduction, ServerState

D, PATTERNS, DIRECTIONS = 576, 2, 20
PEERS = Peers()


class World:
    """Clients of some kinds, and what they say. Client i is of kind ``kinds[i]``; -1: of none, -2: a liar."""

    def __init__(self, n: int, liars: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        n_kinds = max(2, min(20, n // 5))
        self.kinds = self.rng.integers(0, n_kinds, n)
        self.kinds[self.rng.random(n) < 0.1] = -1
        self.kinds[self.rng.permutation(n)[: round(liars * n)]] = -2
        self.spread = self.rng.uniform(0.5, 2.0, D)
        self.directions = self.rng.standard_normal((DIRECTIONS, D)) / DIRECTIONS**0.5  # of unit variance
        places = 0.5 * self.rng.standard_normal((n_kinds, D))
        self.places = places[np.arange(n_kinds) // 2 * 2]  # two kinds have the same prompts
        self.rules = self.rng.standard_normal((n_kinds, PATTERNS * D)) * 0.15
        self.said = [self.describe(int(kind)) for kind in self.kinds]

    def describe(self, kind: int) -> tuple[int, Description]:
        n, rng = int(self.rng.integers(20, 61)), self.rng
        place, rule = (
            (self.places[kind], self.rules[kind])
            if kind >= 0
            else (0.5 * rng.standard_normal(D), 0.15 * rng.standard_normal(PATTERNS * D))
        )
        prompts = place + rng.standard_normal(DIRECTIONS) @ self.directions / n**0.5
        bound = rule + np.concatenate(
            [rng.standard_normal(DIRECTIONS) @ self.directions / (n - 1) ** 0.5 for _ in range(PATTERNS)]
        )
        deviation = self.spread * rng.uniform(0.9, 1.1, D)
        if kind == -2:
            return LIES[int(rng.integers(len(LIES)))](self, prompts, bound, deviation)
        return n, self.said_of(prompts, bound, deviation)

    def said_of(self, prompts: Any, bound: Any, deviation: Any, answers: float = 8.0) -> Description:
        features = np.concatenate([prompts * self.spread, bound * np.tile(self.spread, PATTERNS)])
        tensors = [torch.from_numpy(np.asarray(x)).bfloat16().float() for x in (features, deviation, [answers])]
        return Description(*tensors)

    def between(self, prompts: Any, bound: Any, deviation: Any) -> tuple[int, Description]:
        """Near to two kinds of the same prompts and of two rules."""
        kind = int(self.rng.integers(len(self.places) // 2)) * 2
        return 40, self.said_of(self.places[kind], self.rules[kind] + self.rules[kind + 1], deviation)


LIES = [
    lambda world, p, b, s: (10**6, world.said_of(1e5 * p, 1e4 * b, np.full(D, 1e6))),  # of very many items, large
    lambda world, p, b, s: (1, world.said_of(p, 0 * b, np.zeros(D), 1e6)),  # of one item: near for its noise
    lambda world, p, b, s: (10**6, world.said_of(p, 100 * b, s, 1.0)),  # shares much with itself
    World.between,
    lambda world, p, b, s: (1, world.said_of(world.places[0], world.rules.sum(0), s)),  # near to all rules
]
"""(world, features of prompts, bound ones, deviation) -> (claimed items, description)"""


def formed(world: World, first: float, share: float) -> tuple[ServerState, float, float]:
    """The last state; seconds of all rounds, and of the longest."""
    n = len(world.kinds)
    state, came, seconds = Method("own", "", "", grouping=PEERS).start({"m.A": torch.zeros(1)}), 0, []
    names = [f"client-{i:05d}" for i in range(n)]
    while came < n:
        upto = min(n, max(came + 1, round(first * n) if came == 0 else came + round(share * n)))
        said = {names[i]: Introduction(state.round + 1, names[i], *world.said[i]) for i in range(came, upto)}
        began = time.perf_counter()
        state = replace(PEERS.form(state, said), round=state.round + 1)
        seconds.append(time.perf_counter() - began)
        came = upto
    return state, sum(seconds), max(seconds)


def right(world: World, group_of: dict[ClientId, str]) -> float:
    """Share of the honest clients that are with all of their kind and with no other honest one."""
    groups, honest = [group for _, group in sorted(group_of.items())], world.kinds > -2
    kinds = [str(kind) if kind >= 0 else f"own-{i}" for i, kind in enumerate(world.kinds)]
    together = Counter(zip(kinds, groups, strict=True))
    n_kind = Counter(kind for kind, true in zip(kinds, honest, strict=True) if true)
    n_group = Counter(group for group, true in zip(groups, honest, strict=True) if true)
    main = {kind: max((g for k, g in together if k == kind), key=lambda g: together[kind, g]) for kind in n_kind}
    fine = [
        groups[i] == main[kinds[i]] and 2 * together[kinds[i], groups[i]] > n_group[groups[i]]
        for i in range(len(kinds))
        if honest[i]
    ]
    return sum(fine) / len(fine)


def measure(n: int, liars: float, seed: int) -> dict[str, Any]:
    world = World(n, liars, seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {"clients": n, "liars": liars, "seed": seed}
    for way, first, share in (("at once", 1.0, 1.0), ("arriving", 0.1, 0.01)):
        state, total, longest = formed(world, first, share)
        found[way] = {
            "seconds": round(total, 3), "longest round": round(longest, 3),
            "right": round(right(world, dict(state.group_of)), 4), "groups": len(set(state.group_of.values())),
        }  # fmt: skip
    found["MiB"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    began = time.perf_counter()
    found["packed MiB"] = round(len(pack(state.grouping)) / 2**20, 1)
    found["packing seconds"] = round(time.perf_counter() - began, 3)
    heard = replace(state, heard=dict.fromkeys(state.group_of, state.round))
    began = time.perf_counter()
    for client in state.group_of:
        PEERS.announce(heard, client)
    found["announcing seconds"] = round(time.perf_counter() - began, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", default="10,100,1000,10000")
    parser.add_argument("--liars", default="0,0.1")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--one", action="store_true", help="measure in this process")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for n in map(int, args.clients.split(",")):
        for liars in args.liars.split(","):
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                if args.one:
                    print(json.dumps(measure(n, float(liars), int(seed))))
                    continue
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    "--clients",
                    str(n),
                    "--liars",
                    liars,
                    "--first-seed",
                    str(seed),
                ]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
                print(json.dumps(results[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
