"""Figures of a run: accuracy of each client, and validation accuracy over rounds.

    python benchmarks/figures.py RUN_FOLDER --out figure.svg [--title TEXT]

Reads summary.json and rounds.jsonl of the run, nothing else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from capfl.checkpoint import RunFolder

COLOURS = {"base": "#b0b0b0", "local only": "#d98c5f", "shared": "#5b8db8", "personal": "#2f5d50"}


def draw(folder: RunFolder, out: Path, title: str) -> None:
    """Left: a group of bars a client. Right: validation accuracy of the shared adapters after every round."""
    plt.switch_backend("svg")
    plt.rcParams["svg.hashsalt"] = "capfl"  # equal data, equal file
    summary = folder.read_json("summary.json")
    records = [r for r in folder.rounds() if "accuracy" in r.validation]
    bars = {name: [row[name.replace(" ", "_")] for row in summary["clients"]] for name in COLOURS}
    shown = {name: values for name, values in bars.items() if None not in values}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2), layout="constrained")
    width = 0.8 / len(shown)
    for k, (name, values) in enumerate(shown.items()):
        places = [i + (k - (len(shown) - 1) / 2) * width for i in range(len(values))]
        left.bar(places, [100 * v for v in values], width, label=name, color=COLOURS[name])
    names = [row["id"].replace("_", " ") for row in summary["clients"]]
    left.set_xticks(range(len(names)), names, rotation=30 if len(names) > 6 else 0, ha="right" if len(names) > 6 else
                    "center", fontsize=8)  # fmt: skip
    left.set_ylabel("test accuracy, %")
    left.set_ylim(0, 100)
    left.set_title(title, loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
    rounds = [r.round for r in records]
    right.plot(rounds, [100 * r.validation["accuracy"] for r in records], color=COLOURS["shared"], label="shared")
    chance = summary["metrics"]["accuracy"]["chance"]
    if chance is not None:
        right.axhline(100 * chance, color="#b0b0b0", linestyle=":", linewidth=1)
        right.annotate("chance", (rounds[-1], 100 * chance), ha="right", va="bottom", fontsize=8)
    right.set_xlabel("round")
    right.set_title("shared adapters, validation accuracy, %", loc="left", fontsize=10)
    right.set_ylim(0, 100)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    draw(RunFolder(args.run), args.out, args.title)


if __name__ == "__main__":
    main()
