"""One variant against another, of two comparisons on the same clients: paired difference with a 95 % interval.

    python benchmarks/against.py comparison.json:ca-pfl before.json:before --split peers

Each side is the ``comparison.json`` of `capfl compare` and a variant in it. Points of the clients' personal models,
over the seeds and clients that both have, by the bootstrap of `capfl compare`: seeds, then clients.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from capfl.compare.statistics import bootstrap


def clients(side: str, split: str) -> dict[int, dict[str, float]]:
    """By seed and client: the score of the personal model."""
    path, _, label = side.rpartition(":")
    rows: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
    row = next(row for row in rows if row["split"] == split and row["label"] == label)
    return {
        seed: {client: said["personal"] for client, said in own.items()}
        for seed, own in zip(row["seeds"], row["clients"], strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mine", metavar="FILE:VARIANT")
    parser.add_argument("other", metavar="FILE:VARIANT")
    parser.add_argument("--split", default="peers")
    args = parser.parse_args()
    mine, other = clients(args.mine, args.split), clients(args.other, args.split)
    pairs = [
        np.array([100 * (mine[seed][client] - other[seed][client]) for client in sorted(mine[seed])])
        for seed in sorted(mine.keys() & other.keys())
    ]
    found = bootstrap(pairs)
    crosses = ", crosses 0" if found.crosses_zero else ""
    print(f"{len(pairs)} seeds: {found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f}){crosses}")


if __name__ == "__main__":
    main()
