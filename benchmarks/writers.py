"""Are writers of texts grouped right? Two sites at a time, by what they say of their data before they train.

    python benchmarks/writers.py [--model smollm2] [--draws 20] [--sql DIR] [--json FILE]

Requests are those of the built-in data, of which two sites draw 60 or 200 each from one pool: both reply in one house
style, or each in its own. Replies are almost all unique. With ``--sql`` (a folder of the text2sql data set: files
``DATABASE.jsonl`` of ``prompt`` and ``completion``) there are also two sites of one database, and of two. Counts how
often sites of one style or database are peers, and how often those of two are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capfl.config import load_config
from capfl.data.formats import read_file
from capfl.data.helpdesk import SITES, requests
from capfl.data.replies import STYLES, reply
from capfl.federation import tokenised
from capfl.methods.peers import Description, Peers
from capfl.model.base import load_base
from capfl.model.features import states, summed_up
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Example
from capfl.rng import stream
from capfl.types import EVERYBODY, Group, Introduction, Item, ServerState

SIZES = (60, 200)  # items of a site
MAX_LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--sql", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = load_config(None, {"model.path": args.model, "data.max_length": MAX_LENGTH})
    model = AdaptedModel(load_base(config.model), config.lora)
    table: list[dict[str, Any]] = []
    for what, pools in {"house styles": styles(), "SQL": databases(args.sql)}.items():
        rows = {name: read(model, tokenised(items, config.data, model)) for name, items in pools.items()}
        for size in SIZES:
            fitting = [name for name in sorted(rows) if len(rows[name]) >= 2 * size]
            counts = {"alike": [0, 0], "unlike": [0, 0]}
            for draw in range(args.draws):
                generator = stream(draw, "writers", what, size)
                one = fitting[int(generator.integers(len(fitting)))]
                own = generator.permutation(len(rows[one]))[: 2 * size]
                pairs = {"alike": (one, own[size:])}
                if len(fitting) > 1:
                    two = str(generator.choice([name for name in fitting if name != one]))
                    pairs["unlike"] = (two, generator.permutation(len(rows[two]))[:size])
                for kind, (other, chosen) in pairs.items():
                    counts[kind][0] += are_peers([rows[one].of(own[:size]), rows[other].of(chosen)])
                    counts[kind][1] += 1
            row = {"what": what, "items": size, **{f"peers, {kind}": n for kind, n in counts.items()}}
            table.append(row)
            print(row, flush=True)
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "table": table}, indent=1) + "\n")


def styles() -> dict[str, list[Item]]:
    """Replies in each style to the same requests of one site."""
    asked = requests(SITES[0], 2 * max(SIZES), 0)
    return {style: [Item(one.text, completion=reply(one, style)) for one in asked] for style in STYLES}


def databases(folder: Path | None) -> dict[str, list[Item]]:
    return {path.stem: read_file(path) for path in sorted(folder.glob("*.jsonl"))} if folder else {}


@dataclass(frozen=True)
class Read:
    """Rows as the base sees them."""

    prompts: NDArray[np.float64]
    texts: NDArray[np.float64]
    answers: list[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.answers)

    def of(self, chosen: NDArray[np.int64]) -> Introduction:
        """What a site says that has these rows."""
        said = summed_up(self.prompts[chosen], self.texts[chosen], [self.answers[i] for i in chosen])
        return Introduction(1, "", len(chosen), Description(**said))


def read(model: AdaptedModel, examples: Sequence[Example]) -> Read:
    rows = [example.train for example in examples]
    return Read(*states(model, rows), [tuple(row.targets.tolist()) for row in rows])


def are_peers(sites: Sequence[Introduction]) -> bool:
    """Are two sites put in one group?"""
    said = {f"site-{i}": site for i, site in enumerate(sites)}
    peers = Peers()
    state = ServerState(0, {EVERYBODY: Group({}, {})}, grouping=peers.start())
    return len(set(peers.form(state, said).group_of.values())) == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
