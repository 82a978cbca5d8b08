"""Several seeds of one run in one table: mean and standard deviation over seeds, and paired differences.

    python benchmarks/seeds.py RUN_FOLDER RUN_FOLDER ...

A difference is taken between the means over clients of two models within a run, so that seed, data and clients are
the same on both sides; its 95 % interval is Student's t over the runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from capfl.checkpoint import RunFolder
from capfl.report.summary import MODELS

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # two-sided


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    summaries = [RunFolder(path).read_json("summary.json") for path in parser.parse_args().runs]
    means = [summary["metrics"]["accuracy"]["models"] for summary in summaries]
    found = {m: [own[m] for own in means] for m in MODELS if all(own[m] for own in means)}
    print("| model | mean of clients, each run | mean ± sd | worst client, each run |\n|---|---|---|---|")
    for model, rows in found.items():
        means = [100 * row["mean"] for row in rows]
        spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
        worst = ", ".join(f"{100 * row['worst']:.1f}" for row in rows)
        print(f"| {model.replace('_', ' ')} | {', '.join(f'{m:.1f}' for m in means)} | "
              f"{statistics.fmean(means):.1f}{spread} | {worst} |")  # fmt: skip
    if "local_only" in found and 1 < len(summaries) <= len(T_95) + 1:
        for model in [m for m in ("shared", "personal") if m in found]:
            pairs = zip(found[model], found["local_only"], strict=True)
            apart = [100 * (a["mean"] - b["mean"]) for a, b in pairs]
            half = T_95[len(apart) - 1] * statistics.stdev(apart) / math.sqrt(len(apart))
            print(f"\n{model} - local only: {statistics.fmean(apart):+.1f} points, 95 % interval "
                  f"{statistics.fmean(apart) - half:+.1f} to {statistics.fmean(apart) + half:+.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
