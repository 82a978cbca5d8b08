"""Read a finished run: its sites, rounds, bytes and adapters.

    python examples/read_result.py [--run runs/three_sites] [--model tiny]

Where there is no such folder, examples/three_sites.py makes it first, with ``--model``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from three_sites import train

import capfl


def show(result: capfl.Result) -> None:
    summary = result.summary
    print(f"{summary.method}, {summary.rounds} rounds, {summary.seconds:.0f} s, {summary.failures} failures")

    print("\nscores on each site's own test rows, by the first of its metrics")
    for site, row in result.clients.items():
        scores = {model: f"{row.value(model):.3g}" for model in row.scores}
        print(f"  {site}: {row.metric} {scores}, {row.n_test} rows, group {row.group or 'none'}")

    print("\neach round's mean training loss, and bytes of all sites")
    with open(result.path / "rounds.jsonl", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            losses = record["losses"].values()
            sent = {way: sum(e["bytes"] for e in record["ledger"] if e["direction"] == way) for way in ("up", "down")}
            print(f"  {record['round']}: {sum(losses) / len(losses):.3f}, {sent['up']} up, {sent['down']} down")

    print("\nadapters, which PEFT loads as well")
    for name, folder in result.adapters.items():
        print(f"  {name}: {folder}")
    print("\npage:", result.report())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/three_sites"))
    parser.add_argument("--model", default="smollm2")
    args = parser.parse_args()
    show(capfl.Result.open(args.run) if args.run.exists() else train(args.model, str(args.run)))


if __name__ == "__main__":
    main()
