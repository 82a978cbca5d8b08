"""What attacking clients do to the accuracy of the others, with each robust mean; and what privacy costs.

    python benchmarks/attacks.py [--seeds 3] [--long] [--parts rules,refused,privacy] [--json FILE]

Ten clients teach a random model of 50,000 parameters the colours of things (tests/attacks.py); two of them attack
from the first round on. Accuracies are of the global adapter on the test items of the eight others, in per cent, mean
and, in brackets, the lowest over seeds. Chance is 25. Eight rounds of three steps, in which nobody is done yet, or with
``--long`` fifteen of five, as in the slow tests. What the door refuses is the same with every rule, so it runs without
one, with one seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attacks import ADMITTED, LEARNS, REFUSED, VILLAINS, Attack, attacked, colours, flipped, forged, opened
from capfl import adapter as algebra
from capfl.config import load_config
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.report.summary import Summary
from capfl.roles.agreement import Agreement

RULES = ("none", "clip", "median", "trimmed")
NOISES = (0.01, 0.1, 0.3)
CLIP = 4.0  # a little more than the longest honest change
SHORT: dict[str, object] = {"federation.rounds": 8, "train.steps": 3}
LABELS = "labels turned"  # poison in the data: what is sent is honest


def noise(reply: bytes, agreed: Agreement, first: bytes) -> bytes:
    """Ten times as long as the honest change, in a direction of chance."""
    said = opened(reply, agreed)
    draw = torch.Generator().manual_seed(said.round)
    drawn = {name: torch.randn(t.shape, generator=draw) for name, t in said.adapter.items()}
    return forged(reply, agreed, algebra.scaled(drawn, 10 * algebra.norm(said.adapter) / algebra.norm(drawn)))


MILD: dict[str, Attack] = {"noise": noise, "free rider": flipped(0.0)}  # what spoils little, by any mean


def learnt(attack: str, settings: Mapping[str, object], seed: int) -> Summary:
    """One run, with what two clients do in it; "clean" is nothing."""
    forge = (ADMITTED | MILD | REFUSED).get(attack)
    with tempfile.TemporaryDirectory() as folder:
        data = colours(Path(folder) / "colours.jsonl", liars=VILLAINS if attack == LABELS else ())
        given = {**LEARNS, **settings, "data.sets": [str(data)], "seed": seed, "out": f"{folder}/run"}
        return run(load_config(None, given), attacked(serial, forge, VILLAINS) if forge else serial)[0]


def accuracy(summary: Summary) -> float:
    """Of the shared adapter on the test items of those that are never villains, in per cent."""
    return 100 * fmean(row.shared or 0.0 for row in summary.rows if row.id not in VILLAINS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--parts", default="rules,privacy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began, table, length = time.monotonic(), [], {} if options.long else SHORT

    def cell(attack: str, seeds: int, **settings: object) -> str:
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        found = [learnt(attack, length | dotted, seed) for seed in range(seeds)]
        accuracies = [accuracy(summary) for summary in found]
        row = {"attack": attack, **dotted, "accuracies": accuracies, "refused": [s.failures for s in found]}
        table.append(row | {"epsilon": found[0].epsilon})
        return f"{fmean(accuracies):.1f} ({min(accuracies):.1f})"

    parts = options.parts.split(",")
    if "rules" in parts:
        print(f"| attack | {' | '.join(RULES)} |\n|---|{'---|' * len(RULES)}")
        for attack in ("clean", *(ADMITTED | MILD), LABELS):
            cells = [cell(attack, options.seeds, federation__robust=rule) for rule in RULES]
            print(f"| {attack} | {' | '.join(cells)} |", flush=True)

    if "refused" in parts:
        print("\n| what the door refuses | accuracy | refused |\n|---|---|---|")
        for attack in REFUSED:
            print(f"| {attack} | {cell(attack, 1)} | {table[-1]['refused'][0]} |", flush=True)

    if "privacy" in parts:
        print("\n| noise multiplier | epsilon at delta 1e-5 | accuracy |\n|---|---|---|")
        for noise in NOISES:
            private = {"privacy__clip": CLIP, "privacy__noise_multiplier": noise}
            text = cell("clean", options.seeds, **private)
            print(f"| {noise:g} | {table[-1]['epsilon']:.3g} | {text} |", flush=True)

    print(f"\n{time.monotonic() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
