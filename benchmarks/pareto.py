"""The figure and the table of docs/results/codecs.md, from the runs of `capfl compare benchmarks/pareto.toml`.

    python benchmarks/pareto.py FOLDER [--svg FILE] [--json FILE]

Prints the table (mean ± sd over seeds of the shared adapter's accuracy on the clients' test items, bytes for each
client, both directions, and bytes to come within one point of where dense ends) and the paired differences against
dense with their 95 % intervals (Student's t over seeds), and draws accuracy against total bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from capfl.checkpoint import RunFolder
from seeds import T_95

DENSE = "dense"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    table(parser.parse_args())


def read(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """What is finished: variant -> seed -> accuracy, bytes, and the curve over rounds."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/summary.json")):
        _, name, seed = path.parent.name.split(".")
        summary = json.loads(path.read_text())
        n_clients = len(summary["clients"])
        curve, spent = [], 0
        for record in RunFolder(path.parent).rounds():
            spent += record.bytes_up + record.bytes_down
            if "accuracy" in record.validation:
                curve.append((record.round, spent / n_clients, record.validation["accuracy"]))
        found.setdefault(name, {})[int(seed)] = {
            "accuracy": summary["metrics"]["accuracy"]["models"]["shared"]["mean"],
            "bytes": summary["bytes"]["total"] / n_clients,
            "curve": curve,
        }
    return found


def table(options: argparse.Namespace) -> None:
    found = read(options.folder)
    rows = [summed_up(name, seeds, found.get(DENSE, {})) for name, seeds in found.items()]
    rows.sort(key=lambda row: -row["bytes"])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.svg:
        draw(rows, options.svg)
    print("| variant | seeds | accuracy, % | against dense | kB per client | of dense | kB to dense's end - 1 point |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        apart = row["difference"]
        against = f"{apart['mean']:+.1f}" + (
            f" ({apart['low']:+.1f} to {apart['high']:+.1f})" if "low" in apart else ""
        )
        reached = ", ".join("not reached" if b is None else f"{b / 1e3:.0f}" for b in row["bytes_to_target"])
        print(f"| {row['variant']} | {', '.join(map(str, row['seeds']))} | {spread(row['accuracy'])} | {against} | "
              f"{row['bytes'] / 1e3:.0f} | 1/{row['dense_over_bytes']:.1f} | {reached} |")  # fmt: skip


def summed_up(name: str, seeds: dict[int, dict[str, Any]], dense: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """One variant over its seeds, against dense on the same seeds. Accuracies in percent."""
    both = sorted(seeds.keys() & dense.keys())
    apart = [100 * (seeds[s]["accuracy"] - dense[s]["accuracy"]) for s in both]
    difference = {"mean": statistics.fmean(apart)} if apart else {"mean": math.nan}
    if len(apart) > 1:
        half = T_95[len(apart) - 1] * statistics.stdev(apart) / math.sqrt(len(apart))
        difference |= {"low": difference["mean"] - half, "high": difference["mean"] + half}
    spent = statistics.fmean(run["bytes"] for run in seeds.values())
    dense_spent = statistics.fmean(dense[s]["bytes"] for s in both) if both else math.nan
    return {
        "variant": name,
        "seeds": sorted(seeds),
        "accuracy": [100 * seeds[s]["accuracy"] for s in sorted(seeds)],
        "difference": difference,
        "bytes": spent,
        "dense_over_bytes": dense_spent / spent,
        "bytes_to_target": [first_within(seeds[s]["curve"], dense[s]["curve"][-1][2] - 0.01) for s in both],
        "curve": averaged([seeds[s]["curve"] for s in sorted(seeds)]),
    }


def first_within(curve: list[tuple[int, float, float]], target: float) -> float | None:
    """Bytes spent when the validation accuracy first reached the target, or None if it never did."""
    return next((spent for _, spent, accuracy in curve if accuracy >= target), None)


def averaged(curves: list[list[tuple[int, float, float]]]) -> list[tuple[int, float, float]]:
    """(round, bytes, validation accuracy in percent), the mean over seeds."""
    return [
        (points[0][0], statistics.fmean(p[1] for p in points), 100 * statistics.fmean(p[2] for p in points))
        for points in zip(*curves, strict=True)
    ]


def spread(values: list[float]) -> str:
    sd = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{sd}"


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Left: where each variant ends. Right: validation accuracy against the bytes spent so far."""
    plt.switch_backend("svg")
    plt.rcParams["svg.hashsalt"] = "capfl"  # equal data, equal file
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, row in enumerate(rows):
        colour = plt.get_cmap("tab20")(i % 20)
        left.errorbar(
            row["bytes"] / 1e3, statistics.fmean(row["accuracy"]), fmt="o", color=colour, capsize=2,
            yerr=statistics.stdev(row["accuracy"]) if len(row["accuracy"]) > 1 else None,
        )  # fmt: skip
        place = (row["bytes"] / 1e3, statistics.fmean(row["accuracy"]))
        left.annotate(row["variant"], place, xytext=(4, 4 if i % 2 else -10), textcoords="offset points", fontsize=7)
        kilobytes = [spent / 1e3 for _, spent, _ in row["curve"]]
        right.plot(kilobytes, [accuracy for *_, accuracy in row["curve"]], color=colour, label=row["variant"])
    left.set_title("shared adapter, test accuracy, %", loc="left", fontsize=10)
    right.set_title("on the way there: validation accuracy, %", loc="left", fontsize=10)
    right.legend(frameon=False, fontsize=7)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("kB for each client, both directions")
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main()
