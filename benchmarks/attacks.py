"""What clients that attack do to the accuracy of the others, without and with robust aggregation.

    python benchmarks/attacks.py [--seeds 1] [--codecs 4bit,ternary] [--json FILE]

Ten clients teach a random model of 50,000 parameters the colours of things (tests/attacks.py); two of them attack from
the first round on. Accuracies are of the global adapter on the test items of all clients, in per cent, mean and, in
brackets, the lowest over seeds. What the door refuses is the same with every defence, so it runs without one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attacks import ADMITTED, LEARNS, REFUSED, VILLAINS, attacked, colours
from capfl.config import load_config
from capfl.engines.serial import serial
from capfl.experiment import run

DEFENCES = ("none", "clip", "median", "trimmed")


def accuracy(attack: str, settings: dict[str, object], seed: int) -> tuple[float, int]:
    """Of the global adapter, and how many replies were refused."""
    forge = (ADMITTED | REFUSED).get(attack)
    with tempfile.TemporaryDirectory() as folder:
        data = colours(Path(folder) / "colours.jsonl")
        given = {**LEARNS, **settings, "data.sets": [str(data)], "seed": seed, "out": f"{folder}/run"}
        engine = attacked(serial, forge, VILLAINS) if forge else serial
        summary, _ = run(load_config(None, given), engine)
    found = summary.statistics("global")
    assert found is not None
    return 100 * found["mean"], summary.failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--codecs", default="4bit")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began, table = time.monotonic(), []

    def row(codec: str, attack: str, defences: tuple[str, ...], seeds: int) -> None:
        cells = []
        for defence in defences:
            settings = {"codec.values": codec, "federation.robust": defence}
            found = [accuracy(attack, settings, seed) for seed in range(seeds)]
            accuracies = [a for a, _ in found]
            table.append({"codec": codec, "attack": attack, "defence": defence, "accuracies": accuracies,
                          "refused": [n for _, n in found]})  # fmt: skip
            cells.append(f"{fmean(accuracies):.1f} ({min(accuracies):.1f})")
        refused = table[-1]["refused"]
        print(f"| {codec} | {attack} | {' | '.join(cells)}{' |' * (len(DEFENCES) - len(defences))} | {refused[0]} |",
              flush=True)  # fmt: skip

    print(f"| codec | attack | {' | '.join(DEFENCES)} | refused |\n|---|---|{'---|' * (len(DEFENCES) + 1)}")
    for codec in options.codecs.split(","):
        for attack in ("clean", *ADMITTED):
            row(codec, attack, DEFENCES, options.seeds)
        for attack in REFUSED:
            row(codec, attack, DEFENCES[:1], 1)
    print(f"{time.monotonic() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
