"""The ranks that clients keep: a heat map by client and layer at the end, and their mean over rounds.

    python benchmarks/ranks.py RUN_FOLDER --out figure.svg

Reads summary.json and rounds.jsonl of a run whose method chooses ranks.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from capfl.checkpoint import RunFolder


def by_layer(ranks: dict[str, int]) -> dict[int, float]:
    """The mean rank of each layer's modules."""
    layers: dict[int, list[int]] = {}
    for module, rank in ranks.items():
        found = re.search(r"\.(\d+)\.", module)
        layers.setdefault(int(found.group(1)) if found else 0, []).append(rank)
    return {layer: statistics.fmean(values) for layer, values in sorted(layers.items())}


def draw(folder: RunFolder, out: Path) -> None:
    """Left: clients by layers, at the end. Right: mean rank of every client, round by round."""
    plt.switch_backend("svg")
    plt.rcParams["svg.hashsalt"] = "capfl"  # equal data, equal file
    clients: list[dict[str, Any]] = folder.read_json("summary.json")["clients"]
    rows = [by_layer(row["ranks"]) for row in clients]
    layers = list(rows[0])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 0.28 * len(rows) + 1.6), layout="constrained")
    image = left.imshow([list(row.values()) for row in rows], aspect="auto", cmap="viridis")
    left.set_yticks(range(len(rows)), [row["id"].replace("_", " ") for row in clients], fontsize=8)
    left.set_xticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
    left.set_xlabel("layer")
    left.set_title("mean rank at the end", loc="left", fontsize=10)
    figure.colorbar(image, ax=left)
    records = [record for record in folder.rounds() if record.ranks]
    for row in clients:
        points = [(r.round, statistics.fmean(r.ranks[row["id"]])) for r in records if row["id"] in r.ranks]
        right.plot([p[0] for p in points], [p[1] for p in points], linewidth=1, label=row["id"].replace("_", " "))
    right.set_xlabel("round")
    right.set_title("mean rank after each round", loc="left", fontsize=10)
    right.legend(frameon=False, fontsize=6, ncols=2)
    right.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    draw(RunFolder(args.run), args.out)


if __name__ == "__main__":
    main()
