"""What ranks are worth to clients, and which they keep: importances and ranks by client and layer, round by round.

    python benchmarks/ranks.py RUN_FOLDER --out figure.svg

Reads rounds.jsonl and summary.json of a run whose method chooses ranks. A column for each client (the first eight),
rounds from left to right, layers from top to bottom, attention and MLP apart. Above: kappa, the mean over the modules'
ranks, in units of the client's own mean. Below: the mean rank. Prints both at the end, and how alike clients' ln kappa
are.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from capfl.checkpoint import RunFolder
from capfl.types import RoundRecord

MOST = 8  # clients
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def row_of(module: str) -> tuple[str, int]:
    """The row of a module: its kind and its layer."""
    found = re.search(r"\.(\d+)\.", f".{module}.")
    return "attention" if module.endswith(ATTENTION) else "MLP", int(found.group(1)) if found else 0


def heat(records: Sequence[RoundRecord], values: str, client: str, modules: Sequence[str]) -> NDArray[np.float64]:
    """(rows, rounds): the mean over a row's modules, NaN where the client was not in the round."""
    rows = sorted({row_of(module) for module in modules})
    found = np.full((len(rows), len(records)), np.nan)
    for at, record in enumerate(records):
        told: Mapping[str, Sequence[float]] = getattr(record, values)
        for i, row in enumerate(rows):
            if client in told:
                own = [value for module, value in zip(modules, told[client], strict=True) if row_of(module) == row]
                found[i, at] = np.mean(own)
    return found


def draw(folder: RunFolder, out: Path) -> None:
    plt.switch_backend("svg")
    plt.rcParams.update({"svg.hashsalt": "capfl", "font.size": 8})  # equal data, equal file
    clients: list[dict[str, Any]] = folder.read_json("summary.json")["clients"][:MOST]
    modules = list(clients[0]["ranks"])
    records = [record for record in folder.rounds() if record.kappa]
    if not records:
        raise SystemExit(f"{folder.path}: rounds.jsonl has no importances; run it again with this version of capfl")
    rows = sorted({row_of(module) for module in modules})
    size = (1.35 * len(clients) + 1.6, 0.3 * len(rows) + 1.2)
    figure, axes = plt.subplots(2, len(clients), figsize=size, layout="constrained", squeeze=False)
    every = {what: [heat(records, what, client["id"], modules) for client in clients] for what in ("kappa", "ranks")}
    for across, (what, label) in zip(
        axes, (("kappa", "κ over the client's mean"), ("ranks", "mean rank")), strict=True
    ):
        low, high = (f([np.nanmin(m) for m in every[what]] + [np.nanmax(m) for m in every[what]]) for f in (min, max))
        for panel, client, values in zip(across, clients, every[what], strict=True):
            image = panel.imshow(values, aspect="auto", cmap="viridis", vmin=low, vmax=high)
            panel.set_xticks(range(0, len(records), 3), [str(record.round) for record in records[::3]])
            panel.set_yticks(
                range(len(rows)), [f"{kind} {layer}" for kind, layer in rows] if client is clients[0] else []
            )
            if what == "kappa":
                panel.set_title(client["id"].replace("_", " "), fontsize=8)
            else:
                panel.set_xlabel("round")
        figure.colorbar(image, ax=across, label=label)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


def tell(folder: RunFolder) -> None:
    """At the end: kappa and rank of every row, ranks of kinds of modules, correlations of ln kappa over modules."""
    clients: list[dict[str, Any]] = folder.read_json("summary.json")["clients"]
    last, modules = folder.rounds()[-1], list(clients[0]["ranks"])
    kappa = np.array([last.kappa[client["id"]] for client in clients])  # (clients, modules)
    ranks = np.array([list(client["ranks"].values()) for client in clients])
    for name, of in (("row", row_of), ("kind", lambda module: module.rpartition(".")[2])):
        for own in sorted({of(module) for module in modules}):
            at = [i for i, module in enumerate(modules) if of(module) == own]
            print(f"{name} {own}: kappa {kappa[:, at].mean():.2f}, rank {ranks[:, at].mean():.1f}")
    print("mean rank by client:", {c["id"]: round(float(own.mean()), 2) for c, own in zip(clients, ranks, strict=True)})
    print("correlation of ln kappa between clients:")
    print(np.corrcoef(np.log(kappa)).round(3))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    draw(RunFolder(args.run), args.out)
    tell(RunFolder(args.run))


if __name__ == "__main__":
    main()
