"""A comparison into the documents: its tables between marks in a page, its rows and its picture in the README.

    python benchmarks/readme.py FOLDER --page docs/results/methods.md --name methods
    python benchmarks/readme.py FOLDER --readme README.md --figure docs/results/methods.svg

FOLDER is one of `capfl compare`. Its comparison.json goes beside the page, as NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from capfl.compare.statistics import Interval
from capfl.compare.table import interval, spread
from capfl.report.charts import scores
from capfl.report.tables import size

END = "<!-- end of table -->"
SPLITS = {
    "peers": "two domains of three clients (CLINC150)",
    "conflict": "alike, but two code books (helpdesk)",
    "domains": "nobody has a peer (CLINC150)",
}
VARIANTS = ("local", "fedit", "lora-fair", "rolora", "fedsa-lora", "ca-pfl")
FEWEST = 2  # seeds of a row that is shown


def table(rows: list[dict[str, Any]], variants: list[str]) -> str:
    """Markdown: a row for each split and variant; accuracies of clients' personal models, mean ± sd over seeds, %."""
    lines = [
        "| clients | method | personal, % | against local only, 95 % interval | a client, in all |",
        "|---|---|---|---|---|",
    ]
    for split, about in SPLITS.items():
        shown = [find(rows, split, variant) for variant in variants]
        for at, row in enumerate(row for row in shown if row):
            cells = [
                about if at == 0 else "",
                row["label"],
                spread(row["personal"], "accuracy"),
                apart(row["difference"]),
                size(statistics.fmean(row["bytes_total"])),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def find(rows: list[dict[str, Any]], split: str, variant: str) -> dict[str, Any] | None:
    return next((r for r in rows if r["split"] == split and r["label"] == variant and len(r["seeds"]) >= FEWEST), None)


def apart(difference: dict[str, Any] | None) -> str:
    return interval(difference and Interval(*(difference[key] for key in ("mean", "low", "high"))), "accuracy")


def begin(name: str) -> str:
    """The mark before the table of a comparison."""
    return f"<!-- table: {name} -->"


def into(page: str, name: str, text: str) -> str:
    """The page with the text after the mark of that name.

    Raises:
        ValueError: it has no such mark, or no end after it.
    """
    if page.count(begin(name)) != 1 or END not in page.partition(begin(name))[2]:
        raise ValueError(f"the page needs a line {begin(name)!r}, once, and {END!r} after it")
    before, _, rest = page.partition(begin(name))
    return f"{before}{begin(name)}\n{text}\n{END}{rest.partition(END)[2]}"


def fill(path: Path, name: str, text: str) -> None:
    path.write_text(into(path.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def draw(rows: list[dict[str, Any]], variants: list[str], path: Path) -> None:
    """A panel for each split: every seed's mean over clients as a dot, their mean as a bar."""
    panels = {
        about: {
            variant: [100 * value for value in row["personal"]]
            for variant in variants
            if (row := find(rows, split, variant))
        }
        for split, about in SPLITS.items()
    }
    shown = {about: own for about, own in panels.items() if own}
    scores(shown, "accuracy of clients' personal models on their own test items, %", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="methods", help="of the mark and of the JSON file")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--readme", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="rows of README and figure, in their order")
    args = parser.parse_args()
    said = (args.folder / "comparison.json").read_text(encoding="utf-8")
    rows, variants = json.loads(said)["rows"], args.variants.split(",")
    if args.page:
        fill(args.page, args.name, (args.folder / "table.md").read_text(encoding="utf-8").strip())
        args.page.with_name(f"{args.name}.json").write_text(said, encoding="utf-8")
    if args.readme:
        fill(args.readme, args.name, table(rows, variants))
    if args.figure:
        draw(rows, variants, args.figure)


if __name__ == "__main__":
    main()
