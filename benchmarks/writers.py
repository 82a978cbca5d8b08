"""Are writers of texts grouped right, by what they say of their data before they train?

    python benchmarks/writers.py [--model smollm2] [--draws 20] [--data DIR] [--json FILE]

Two sites at a time, with 60 and 200 rows each, draw replies to requests of the built-in data: both reply in one house
style, or each in its own. Replies are almost all unique. Counts how often sites of one style are peers, and how often
those of two are. Six sites at a time, with 10, 20 and 44 rows each: three of each style.

With ``--data`` (a folder with ``text2sql/DATABASE.jsonl``, ``mts_dialog/train.jsonl`` and
``medquad/INSTITUTION.jsonl``, as ``benchmarks/text.toml`` reads them) there are also two sites of one database or of
two; three sites of each of two databases, that have queries of the same templates or each of its own; clients with
Dirichlet(0.3) shares of the sections of doctors' notes; six institutions, and three sites of each of two institutions.
Prints the groups that came most often.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from capfl.config import load_config
from capfl.config.data import PartitionConfig
from capfl.data.formats import read_file
from capfl.data.helpdesk import SITES, requests
from capfl.data.partition import partition
from capfl.data.replies import STYLES, reply
from capfl.federation import tokenised
from capfl.methods.peers import Description
from capfl.model.base import load_base
from capfl.model.features import states, summed_up
from capfl.model.lora import AdaptedModel
from capfl.rng import stream
from capfl.types import Introduction, Item
from descriptions import groups

Ints = NDArray[np.int64]
Site = tuple[str, Ints]  # whose rows, and which

PAIRS, SIXES = (60, 200), (10, 20, 44)  # items of a site
CLIENTS = 6
DATABASES = ("advising", "atis")
INSTITUTIONS = ("CancerGov", "GARD", "GHR", "NIDDK", "NINDS", "SeniorHealth")
MAX_LENGTH = 384
MOST, OF_HEALTH = 500, 160  # rows of a file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = load_config(None, {"model.path": args.model, "data.max_length": MAX_LENGTH})
    model = AdaptedModel(load_base(config.model), config.lora)

    def read(items: list[Item], too_long: str = "cut-prompt") -> Read:
        its = load_config(None, {"data.max_length": MAX_LENGTH, "data.too_long": too_long}).data
        rows = [example.train for example in tokenised(items[:MOST], its, model)]
        answers = [tuple(row.targets.tolist()) for row in rows]
        return Read(*states(model, rows), answers, items[:MOST])

    table: list[dict[str, Any]] = []
    for row in measured(read, args.data, args.draws):
        table.append(row)
        print(row, flush=True)
        if args.json:
            args.json.write_text(json.dumps({"model": Path(args.model).name, "table": table}, indent=1) + "\n")


def measured(read: Callable[..., Read], data: Path | None, draws: int) -> Iterator[dict[str, Any]]:
    """All rows of the table, one after the other."""
    rows = {name: read(items) for name, items in styles().items()}
    yield from pairs("house styles", rows, draws)
    yield from sixes("house styles", rows, partial(by_row, rows, list(rows)), draws)
    if data is None:
        return
    sql = {path.stem: read(read_file(path)) for path in sorted(data.glob("text2sql/*.jsonl"))}
    yield from pairs("SQL", sql, draws)
    yield from sixes("databases", sql, partial(by_row, sql, DATABASES), draws)
    yield from sixes("databases, each site its own templates", sql, partial(by_template, sql), draws)
    notes = {"notes": read(read_file(data / "mts_dialog" / "train.jsonl"))}
    yield from sixes("notes", notes, partial(by_shares, notes["notes"]), draws)
    files = {name: data / "medquad" / f"{name}_QA.jsonl" for name in INSTITUTIONS}
    health = {name: read(read_file(path)[:OF_HEALTH], "cut-answer") for name, path in files.items()}
    yield from sixes("institutions", health, partial(by_row, health, INSTITUTIONS), draws)
    for names in (("CancerGov", "NIDDK"), ("GHR", "NINDS")):
        yield from sixes(" and ".join(names), health, partial(by_row, health, names), draws)


def styles() -> dict[str, list[Item]]:
    """Replies in each style to the same requests of one site."""
    asked = requests(SITES[0], 2 * max(PAIRS), 0)
    return {style: [Item(one.text, completion=reply(one, style)) for one in asked] for style in STYLES}


@dataclass(frozen=True)
class Read:
    """Rows as the base sees them."""

    prompts: NDArray[np.float64]
    texts: NDArray[np.float64]
    answers: list[tuple[int, ...]]
    items: list[Item]

    def __len__(self) -> int:
        return len(self.answers)

    def of(self, chosen: Ints) -> Introduction:
        """What a site says that has these rows."""
        said = summed_up(self.prompts[chosen], self.texts[chosen], [self.answers[i] for i in chosen])
        return Introduction(1, "", len(chosen), Description(**said))


def pairs(what: str, rows: Mapping[str, Read], draws: int) -> Iterator[dict[str, Any]]:
    """How often two sites of one kind are peers, and two of different kinds."""
    for size in PAIRS:
        fitting = [name for name in sorted(rows) if len(rows[name]) >= 2 * size]
        counts = {"alike": [0, 0], "unlike": [0, 0]}
        for draw in range(draws):
            generator = stream(draw, "writers", what, size)
            one = fitting[int(generator.integers(len(fitting)))]
            own = generator.permutation(len(rows[one]))[: 2 * size]
            others = {"alike": (one, own[size:])}
            if len(fitting) > 1:
                two = str(generator.choice([name for name in fitting if name != one]))
                others["unlike"] = (two, generator.permutation(len(rows[two]))[:size])
            for kind, other in others.items():
                counts[kind][0] += len(set(grouped(rows, [(one, own[:size]), other]))) == 1
                counts[kind][1] += 1
        yield {"what": what, "items": size, **{f"peers, {kind}": n for kind, n in counts.items()}}


def sixes(
    what: str, rows: Mapping[str, Read], drawn: Callable[[int, np.random.Generator], list[Site]], draws: int
) -> Iterator[dict[str, Any]]:
    """The groups of six sites that come most often."""
    for size in SIXES:
        found: Counter[str] = Counter()
        for draw in range(draws):
            sites = drawn(size, stream(draw, "writers", what, size))
            found[shown([name for name, _ in sites], grouped(rows, sites))] += 1
        yield {"what": what, "items": size, "draws": draws, "groups": dict(found.most_common(3))}


def by_row(rows: Mapping[str, Read], names: Sequence[str], n: int, rng: np.random.Generator) -> list[Site]:
    """Six sites, as many of each kind."""
    each = CLIENTS // len(names)
    return [(name, part) for name in names for part in np.split(rng.permutation(len(rows[name]))[: each * n], each)]


def by_template(rows: Mapping[str, Read], n: int, rng: np.random.Generator) -> list[Site]:
    """Three sites of each database, each with templates of queries that no other has."""
    sites = []
    for name in DATABASES:
        templates = np.array([item.fields["template"] for item in rows[name].items])
        owner = {template: i % 3 for i, template in enumerate(rng.permutation(np.unique(templates)))}
        whose = np.array([owner[template] for template in templates])
        sites += [(name, rng.permutation(np.flatnonzero(whose == i))[:n]) for i in range(3)]
    return sites


def by_shares(rows: Read, n: int, rng: np.random.Generator) -> list[Site]:
    """Six sites with Dirichlet shares of each section of the notes, up to n rows each."""
    shares = PartitionConfig(kind="dirichlet:section", clients=CLIENTS, alpha=0.3, max_items=n, min_items=3)
    dealt = partition(rows.items, shares, int(rng.integers(2**31)))
    return [("notes", np.array(part)) for part in dealt.values()]


def grouped(rows: Mapping[str, Read], sites: Sequence[Site]) -> list[str]:
    """The group of each site, by CA-PFL's default rule."""
    said = {f"{i:02}": rows[name].of(chosen) for i, (name, chosen) in enumerate(sites)}
    group_of = groups(said)
    return [group_of[client] for client in sorted(said)]


def shown(names: Sequence[str], group_of: Sequence[str]) -> str:
    """Groups as ``GARD + GHR, NINDS``."""
    members: dict[str, list[str]] = {}
    for name, group in zip(names, group_of, strict=True):
        members.setdefault(group, []).append(name)
    return ", ".join(sorted(" + ".join(group) for group in members.values()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
