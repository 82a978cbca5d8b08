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

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import Bbox

from capfl.report.charts import COLOURS, INK, NO_METADATA, drawing

OURS = "ca-pfl"
PLACES = [(x, y) for y in (0, 9, -9, 18, -18, 27, -27) for x in (6, -6)]  # points from a dot to its label, best first
HEIGHT, WIDTH = 3.2, 6.6  # inches of a panel
RADIUS = 4  # pixels of a dot


def name(axes: Axes, dots: list[tuple[str, tuple[float, float], float]]) -> None:
    """Write each label at the first of its places where there is neither a bar nor another label."""
    taken = []
    for _, (x, y), spread in dots:
        ends = axes.transData.transform([(x, y - spread), (x, y + spread)])
        taken.append(Bbox(ends).padded(RADIUS))
    for label, at, _ in dots:
        for x, y in PLACES:
            text = axes.annotate(
                label, at, xytext=(x, y), textcoords="offset points", color=INK, va="center",
                ha="left" if x > 0 else "right",
            )  # fmt: skip
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or (x, y) == PLACES[-1]:
                taken.append(box)
                break
            text.remove()


def draw(panels: dict[str, list[dict[str, Any]]], path: Path) -> None:
    sizes = [statistics.fmean(row["bytes_total"]) for rows in panels.values() for row in rows]
    with drawing(path.stem, HEIGHT * len(panels), [1] * len(panels), WIDTH) as (figure, every):
        for axes, (title, rows) in zip(every, panels.items(), strict=True):
            axes.set_xscale("log")
            axes.set_xlim(0.4 * min(sizes), 4 * max(sizes))  # the same in all panels
            dots = []
            for row in rows:
                values = [100 * value for value in row["personal"]]
                at = (statistics.fmean(row["bytes_total"]), statistics.fmean(values))
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                colour = COLOURS["personal"] if row["label"].startswith(OURS) else COLOURS["shared"]
                axes.errorbar(*at, yerr=spread, fmt="o", color=colour, capsize=2, markersize=4)
                dots.append((row["label"], at, spread))
            FigureCanvasAgg(figure).draw()  # so that it is known where things are
            name(axes, dots)
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
