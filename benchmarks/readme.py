"""The README's results from a comparison: its table, between two marks in the text, and its picture.

    python benchmarks/readme.py docs/results/methods.json --readme README.md --figure docs/results/methods.svg

The JSON is the comparison.json that `capfl compare benchmarks/methods.toml` writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from capfl.compare.statistics import Interval
from capfl.compare.table import interval, spread
from capfl.report.tables import size

BEGIN, END = "<!-- results: python benchmarks/readme.py -->", "<!-- end of results -->"
SPLITS = {
    "peers": "two domains of three clients each (CLINC150)",
    "conflict": "alike but for two code books (helpdesk)",
    "domains": "nobody has a peer (CLINC150)",
}
FEWEST = 2  # seeds of a row that is shown


def table(rows: list[dict[str, Any]], variants: list[str]) -> str:
    """Markdown: a row for each split and variant; accuracies of clients' personal models, mean ± sd over seeds, %."""
    lines = [
        "| clients | method | personal, % | worst client, % | against local only, 95 % interval | a client, in all |",
        "|---|---|---|---|---|---|",
    ]
    for split, about in SPLITS.items():
        shown = [find(rows, split, variant) for variant in variants]
        for at, row in enumerate(row for row in shown if row):
            cells = [
                about if at == 0 else "",
                row["label"],
                spread(row["personal"]),
                spread(row["worst"]),
                apart(row["difference"]),
                size(statistics.fmean(row["bytes_total"])),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def find(rows: list[dict[str, Any]], split: str, variant: str) -> dict[str, Any] | None:
    return next((r for r in rows if r["split"] == split and r["label"] == variant and len(r["seeds"]) >= FEWEST), None)


def apart(difference: dict[str, Any] | None) -> str:
    return interval(difference and Interval(*(difference[key] for key in ("mean", "low", "high"))))


def into(readme: str, text: str) -> str:
    """The README with the text between the marks.

    Raises:
        ValueError: it has no marks.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise ValueError(f"the README needs the lines {BEGIN!r} and {END!r}, once each")
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


def draw(rows: list[dict[str, Any]], variants: list[str], path: Path) -> None:
    """A panel for each split: every seed's mean over clients as a dot, their mean as a bar."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "capfl", "font.size": 9})
    splits = [split for split in SPLITS if any(find(rows, split, variant) for variant in variants)]
    figure, axes = plt.subplots(1, len(splits), figsize=(3.2 * len(splits), 2.8), sharey=True, squeeze=False)
    for panel, split in zip(axes[0], splits, strict=True):
        for at, variant in enumerate(reversed(variants)):
            row = find(rows, split, variant)
            if row is None:
                continue
            values = [100 * value for value in row["personal"]]
            colour = "#1f6f5c" if variant == "ca-pfl" else "#9aa5b1"
            panel.barh(at, statistics.fmean(values), color=colour, height=0.7)
            panel.plot(values, [at] * len(values), "o", color="#222222", markersize=3)
        panel.set_title(SPLITS[split], fontsize=8)
        panel.set_yticks(range(len(variants)), reversed(variants))
        panel.set_xlim(0, 100)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("accuracy of clients' personal models on their own test items, %", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--readme", type=Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--variants", default="local,fedit,fedsa-lora,lora-fair,ca-pfl", help="rows, in their order")
    args = parser.parse_args()
    rows, variants = json.loads(args.comparison.read_text())["rows"], args.variants.split(",")
    args.readme.write_text(into(args.readme.read_text(encoding="utf-8"), table(rows, variants)), encoding="utf-8")
    draw(rows, variants, args.figure)


if __name__ == "__main__":
    main()
