"""Peers found by descriptions with noise, which would make them differentially private for single items.

    python benchmarks/descriptions.py [--model smollm2] [--json docs/results/descriptions.json]

Clients are shares of the first four sites of the built-in requests: those of one site are peers, and sites label
every kind of request in their own ways. What is public is the base and the other four sites, of which centre and
spread of the states are taken. A client clips each item's state, in these units, to the root of its length, binds it to
its answer in two patterns, and adds Gaussian noise to the mean of the three: replacing an item moves it by up to
2 root(3) clip / n. The noise for (epsilon, delta) is that of Balle and Wang, Improving the Gaussian mechanism, ICML
2018, theorem 8. Deviation and number of answers are public constants. The server takes the noise off distances, by
counting as many items as would have made a mean as uncertain. A client is placed right that is with all of its site and
with nobody else. ``today`` is a description as it is sent, without clip and noise.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.data import load_items
from capfl.federation import tokenised
from capfl.methods.peers import Description, Peers
from capfl.model.base import load_base
from capfl.model.features import PATTERNS, states, summed_up
from capfl.model.lora import AdaptedModel
from capfl.rng import stream
from capfl.types import EVERYBODY, ClientId, Group, Introduction, ServerState

SITES, DELTA = 4, 1e-5
EPSILONS: tuple[float | None, ...] = (None, 0.5, 1, 2, 4, 8, 16, 32, math.inf)
Doubles = NDArray[np.float64]
Answers = list[tuple[int, ...]]


def noise_of(epsilon: float, delta: float = DELTA) -> float:
    """Standard deviation of the noise in units of the sensitivity."""
    if math.isinf(epsilon):
        return 0.0

    def excess(log: float) -> float:
        z = math.exp(log)
        far, near = -1 / (2 * z) - epsilon * z, 1 / (2 * z) - epsilon * z
        return float(norm.cdf(near) - math.exp(epsilon + norm.logcdf(far))) - delta

    return math.exp(brentq(excess, math.log(1e-3), math.log(1e4)))


def private(x: Doubles, answers: Answers, sigma: float, rng: np.random.Generator) -> tuple[Doubles, Doubles, float]:
    """Means of public units (d,), bound (PATTERNS d,), and the variance of the noise. ``sigma`` as of ``noise_of``."""
    n, d = x.shape
    clip = math.sqrt(d)
    x = x * np.minimum(1, clip / np.linalg.norm(x, axis=1))[:, None]
    signs = {answer: stream(0, "answer", *answer).integers(0, 2, (PATTERNS, d)) * 2 - 1 for answer in set(answers)}
    pairs = [(state * signs[answer]).ravel() for state, answer in zip(x, answers, strict=True)]
    whole = np.concatenate([x, np.stack(pairs)], axis=1).mean(0)
    deviation = sigma * 2 * math.sqrt(1 + PATTERNS) * clip / n
    whole = whole + deviation * rng.standard_normal(len(whole))
    return whole[:d], whole[d:], deviation**2


def introduced(name: str, n: int, features: Doubles, deviation: Doubles, answers: float) -> Introduction:
    vectors = (torch.from_numpy(vector).float() for vector in (features, deviation, np.array([answers])))
    return Introduction(1, name, n, Description(*vectors))


def groups(said: Mapping[ClientId, Introduction]) -> Mapping[ClientId, str]:
    """The group of each client in a run that has just begun, by CA-PFL's default rule."""
    peers = Peers()
    return peers.form(ServerState(0, {EVERYBODY: Group({}, {})}, grouping=peers.start()), said).group_of


def placed(said: dict[str, Introduction]) -> tuple[float, float]:
    """Shares of the clients that are placed right, and that are with one of another site."""
    group_of = groups(said)
    members: dict[str, set[str]] = {}
    for client, group in group_of.items():
        members.setdefault(group, set()).add(client)
    site = {client: client.rpartition("-")[0] for client in said}
    own = {client: {other for other in said if site[other] == site[client]} for client in said}
    mine = {client: members[group_of[client]] for client in said}
    right = [mine[client] == own[client] for client in said]
    mixed = [not mine[client] <= own[client] for client in said]
    return float(np.mean(right)), float(np.mean(mixed))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--items", type=int, default=240, help="of each site")
    parser.add_argument("--clients", default="2,4", help="of each site, which share its items")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = DataConfig(sets=("helpdesk",), sites=2 * SITES, items=args.items, conflict=1.0)
    items = load_items(data, 0)
    model = AdaptedModel(load_base(ModelConfig(path=args.model)), LoraConfig())
    rows = [example.train for example in tokenised(items, data, model)]
    prompts, _ = states(model, rows)
    sites = [item.fields["site"] for item in items]
    names = list(dict.fromkeys(sites))
    public = prompts[[site not in names[:SITES] for site in sites]]
    centre, spread = public.mean(0), public.std(0)
    answers = [tuple(row.targets.tolist()) for row in rows]
    table = []
    for shares in map(int, args.clients.split(",")):
        for epsilon in EPSILONS:
            found = []
            for draw in range(args.draws):
                rng = np.random.default_rng(draw)
                said = {}
                for name in names[:SITES]:
                    own = rng.permutation([i for i, site in enumerate(sites) if site == name])
                    for k, chosen in enumerate(np.array_split(own, shares)):
                        called, its = f"{name}-{k}", [answers[i] for i in chosen]
                        if epsilon is None:
                            now = Description(**summed_up(prompts[chosen], None, its))
                            said[called], noise = Introduction(1, called, len(chosen), now), 0.0
                            continue
                        x = (prompts[chosen] - centre) / spread
                        means, bindings, noise = private(x, its, noise_of(epsilon), rng)
                        features = np.concatenate([means * spread + centre, bindings * np.tile(spread, PATTERNS)])
                        counted = max(1, round(1 / (1 / len(chosen) + noise)))
                        said[called] = introduced(called, counted, features, spread, 8.0)
                found.append(placed(said))
            right, mixed = np.mean(found, axis=0)
            table.append({
                "items": args.items // shares, "clients": SITES * shares,
                "epsilon": "today" if epsilon is None else str(epsilon), "noise": round(noise**0.5, 3),
                "right": round(float(right), 3), "with others": round(float(mixed), 3),
            })  # fmt: skip
            print(table[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "delta": DELTA, "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
