"""One variant against another, of two comparisons on the same clients: paired difference with a 95 % interval.

    python benchmarks/against.py comparison.json:ca-pfl before.json:before --split peers [--metric perplexity]

Each side is the ``comparison.json`` of `capfl compare` and a variant in it. Points of the clients' personal models, or
differences of a metric that is no share, over the seeds and clients that both have, by the bootstrap of `capfl
compare`: seeds, then clients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from capfl import metrics
from capfl.compare.statistics import bootstrap


def clients(side: str, split: str, metric: str) -> dict[int, dict[str, float]]:
    """By seed and client: the personal model's score, in points if it is a share."""
    path, _, label = side.rpartition(":")
    rows: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
    row = next((row for row in rows if (row["split"], row["label"], row["metric"]) == (split, label, metric)), None)
    if row is None:
        there = sorted({row["metric"] for row in rows if (row["split"], row["label"]) == (split, label)})
        raise SystemExit(f"{path}: no {metric} of {label} on {split}; it has {', '.join(there) or 'no such rows'}")
    unit = 100 if metrics.metric(metric).is_share else 1
    return {
        seed: {client: unit * said["personal"] for client, said in own.items()}
        for seed, own in zip(row["seeds"], row["clients"], strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mine", metavar="FILE:VARIANT")
    parser.add_argument("other", metavar="FILE:VARIANT")
    parser.add_argument("--split", default="peers")
    parser.add_argument("--metric", default="accuracy")
    args = parser.parse_args()
    mine, other = (clients(side, args.split, args.metric) for side in (args.mine, args.other))
    pairs = [
        np.array([mine[seed][client] - other[seed][client] for client in sorted(mine[seed])])
        for seed in sorted(mine.keys() & other.keys())
    ]
    found = bootstrap(pairs)
    crosses = ", crosses 0" if found.crosses_zero else ""
    print(f"{len(pairs)} seeds: {found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f}){crosses}")


if __name__ == "__main__":
    main()
