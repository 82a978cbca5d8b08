"""What a client that never trained is given: base, global and personal adapter on items of newcomers.

    python benchmarks/cold_start.py RUN [RUN ...] --data-dir DIR [--json FILE]

RUN is a finished CA-PFL run of ``benchmarks/methods.toml`` on the split ``peers``, one for each seed. Newcomers come
from CLINC150's validation rows, which no run has seen (3 of the 3,000 texts also stand in the training file): three for
each domain of the run, who should be placed with that domain's clients, and one for each of two domains that the run
does not have, for whom there is nobody. 46 items describe a newcomer; up to 100 others test it, 54 where a domain's 300
are shared by three. Intervals are 95 %, by a bootstrap over seeds and over newcomers within them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from capfl.data import load_items
from capfl.newcomer import Run
from capfl.rng import stream
from capfl.types import Item

DESCRIBED, TESTED = 46, 100  # items
PER_DOMAIN, UNKNOWN = 3, ("auto_and_commute", "kitchen_and_dining")
DRAWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for path in options.runs for row in newcomers_of(path, options.data_dir)]
    table = [summed_up([row for row in rows if row["known"] is known], known) for known in (True, False)]
    print("| newcomers | base, % | global, % | personal, % | personal - global | personal - base | "
          "placed right | rank | bytes up | bytes down |")  # fmt: skip
    print("|" + "---|" * 10)
    for line in table:
        print("| " + " | ".join([
            line["who"], *(f"{line[name]:.1f}" for name in ("base", "global", "personal")),
            *(interval(line[f"against {name}"]) for name in ("global", "base")),
            f"{line['right']} of {line['n']}", f"{line['rank']:.1f}", f"{line['up']:.0f}", f"{line['down']:.0f}",
        ]) + " |")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({"table": table, "newcomers": rows}, indent=1) + "\n")


def newcomers_of(path: Path, data: Path) -> list[dict[str, Any]]:
    """A row for each newcomer to one run."""
    run = Run(path)
    config = run.config.data.model_copy(update={"dir": str(data), "split": "validation"})
    items = load_items(config, run.config.seed)
    domains = sorted({item.fields["domain"] for item in items})
    known = [domain for domain in domains if any(client.startswith(domain) for client in run.state.group_of)]
    if not known:
        raise SystemExit(f"{path}: no client is in a group of peers; give a run of ca-pfl with method.peers = features")
    rows = []
    for domain in [*known, *(domain for domain in UNKNOWN if domain not in known)]:
        own = [item for item in items if item.fields["domain"] == domain]
        for k, (told, held_back) in enumerate(drawn(own, run.config.seed, PER_DOMAIN if domain in known else 1)):
            found = run.welcome(f"new-{domain}-{k}", told, held_back)
            right = all(peer.startswith(domain) for peer in found.peers) and bool(found.peers) is (domain in known)
            rows.append({"seed": run.config.seed, "domain": domain, "known": domain in known, "right": right,
                         "n_test": len(held_back), **found.to_json()})  # fmt: skip
            print(found.client, found.scores, "right" if right else found.peers, flush=True)
    return rows


def drawn(items: list[Item], seed: int, newcomers: int) -> list[tuple[list[Item], list[Item]]]:
    """For each newcomer, the items that describe it and those that test it; no item twice."""
    order = [items[i] for i in stream(seed, "newcomers", items[0].fields["domain"]).permutation(len(items))]
    shares = [order[k::newcomers] for k in range(newcomers)]
    return [(share[:DESCRIBED], share[DESCRIBED:][:TESTED]) for share in shares]


def summed_up(rows: list[dict[str, Any]], known: bool) -> dict[str, Any]:
    """Means in percent, and paired differences with intervals."""
    of = {name: [100 * row["scores"][name]["accuracy"] for row in rows] for name in ("base", "global", "personal")}
    seeds = [row["seed"] for row in rows]
    return {
        "who": "of a domain that the run has" if known else "of another domain",
        "n": len(rows),
        **{name: float(np.mean(values)) for name, values in of.items()},
        **{
            f"against {other}": bootstrap(np.subtract(of["personal"], of[other]), seeds) for other in ("global", "base")
        },
        "right": sum(row["right"] for row in rows),
        "rank": float(np.mean([row["rank"] for row in rows])),
        "up": float(np.mean([row["bytes_up"] for row in rows])),
        "down": float(np.mean([row["bytes_down"] for row in rows])),
    }


def bootstrap(differences: np.ndarray, seeds: list[int]) -> tuple[float, float, float]:
    """Mean and 95 % interval: seeds are drawn, then newcomers within each."""
    groups = [differences[[s == seed for s in seeds]] for seed in sorted(set(seeds))]
    rng = stream(0, "bootstrap")
    means = [
        np.mean([rng.choice(groups[g], len(groups[g])).mean() for g in rng.integers(len(groups), size=len(groups))])
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)


def interval(found: tuple[float, float, float]) -> str:
    return f"{found[0]:+.1f} ({found[1]:+.1f} to {found[2]:+.1f})"


if __name__ == "__main__":
    main()
