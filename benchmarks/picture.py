"""Accuracy against bytes: where each method of a comparison ends, a panel for each model.

    python benchmarks/picture.py MODEL=comparison.json [MODEL=comparison.json ...] --split peers --out FILE.svg

Each file is the ``comparison.json`` of `capfl compare`; MODEL is the title of its panel. Across, on a logarithmic
scale: all bytes of a client in the whole run. Up: accuracy of clients' personal models, mean over clients and seeds,
with the standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.ticker import EngFormatter

from capfl.report.charts import COLOURS, INK, NO_METADATA, drawing

OURS = "ca-pfl"
HEIGHT, WIDTH = 3.2, 6.6  # inches of a panel


def draw(panels: dict[str, list[dict[str, Any]]], path: Path) -> None:
    with drawing(path.stem, HEIGHT * len(panels), [1] * len(panels), WIDTH) as (figure, every):
        for axes, (title, rows) in zip(every, panels.items(), strict=True):
            for at, row in enumerate(sorted(rows, key=lambda row: statistics.fmean(row["bytes_total"]))):
                values = [100 * value for value in row["personal"]]
                place = (statistics.fmean(row["bytes_total"]), statistics.fmean(values))
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                colour = COLOURS["personal"] if row["label"].startswith(OURS) else COLOURS["shared"]
                axes.errorbar(*place, yerr=spread, fmt="o", color=colour, capsize=2, markersize=4)
                beside = (5, 4 if at % 2 else -10)
                axes.annotate(row["label"], place, xytext=beside, textcoords="offset points", color=INK)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(EngFormatter("B", sep=" "))
            axes.set(title=title, ylabel="accuracy, %")
        every[-1].set_xlabel("bytes of a client in the whole run, both directions")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=NO_METADATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", metavar="MODEL=FILE")
    parser.add_argument("--split", default="peers")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    panels = {}
    for given in args.comparisons:
        title, _, path = given.partition("=")
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
        panels[title] = [row for row in rows if row["split"] == args.split]
    draw(panels, args.out)


if __name__ == "__main__":
    main()
