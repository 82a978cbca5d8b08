"""Which clients are placed together: clients of the same kind, of different kinds, mixtures, and contradictions.

    python benchmarks/placed.py --data-dir FOLDER [--model smollm2] [--items 10,20,44] [--draws 30] [--json FILE]

Clients hold rows of CLINC150, as many each. They describe them, and CA-PFL's default rule forms groups. Nobody trains.

- ``apart``: six clients, each with a domain of its own;
- ``loners``: five domains, two clients each of the first two, one each of the others;
- ``twelve``: four domains with three clients each;
- ``conflict``: six clients of one domain, every second one with other letters for the same intents;
- ``mixtures A``: six clients with Dirichlet(A) shares of five domains.

Of the first four: the share of clients that are with all of their kind and nobody else. Of mixtures: of all that the
clients have in common with others, the share that is within groups. Two clients have the cosine of their shares in
common. ``±`` is the standard error over draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capfl.config import load_config
from capfl.data import load_items
from capfl.federation import tokenised
from capfl.methods.peers import Description
from capfl.model.base import load_base
from capfl.model.features import states, summed_up
from capfl.model.lora import AdaptedModel
from capfl.types import Introduction
from descriptions import groups

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Client = tuple[Ints, dict[int, int]]  # rows, and by which answer each answer is replaced
SCENES = ("apart", "loners", "twelve", "conflict", "mixtures 0.1", "mixtures 0.3", "mixtures 1.0")
DOMAINS, SIX = 5, 6


class Rows:
    """States and answers of all rows of CLINC150, by domain."""

    def __init__(self, model: str, folder: Path, most: int) -> None:
        settings = {"model.path": model, "data.sets": "clinc150", "data.dir": str(folder), "data.limit": most}
        config = load_config(None, settings)
        items = load_items(config.data, 0)
        adapted = AdaptedModel(load_base(config.model), config.lora)
        rows = [example.train for example in tokenised(items, config.data, adapted)]
        self.states, _ = states(adapted, rows)
        self.answers = np.array([item.answer for item in items])
        domains = np.array([item.fields["domain"] for item in items])
        self.of = {domain: np.flatnonzero(domains == domain) for domain in sorted(set(domains))}

    def described(self, name: str, client: Client) -> Introduction:
        rows, replaced = client
        answers = [(replaced.get(answer, answer),) for answer in self.answers[rows].tolist()]
        return Introduction(1, name, len(rows), Description(**summed_up(self.states[rows], None, answers)))

    def groups(self, clients: list[Client]) -> list[str]:
        """The group of each."""
        said = {f"{i:02}": self.described(f"{i:02}", client) for i, client in enumerate(clients)}
        group_of = groups(said)
        return [group_of[name] for name in sorted(said)]


def scene(name: str, data: Rows, n: int, rng: np.random.Generator) -> tuple[list[Client], Doubles]:
    """Clients with n rows each, and what each has in common with each other, from 0 to 1."""
    domains = rng.permutation(list(data.of))
    if name.startswith("mixtures"):
        shares = rng.dirichlet([float(name.split()[1])] * DOMAINS, SIX)
        counts = [rng.multinomial(n, own) for own in shares]
        rows = [
            np.concatenate([rng.permutation(data.of[d])[:k] for d, k in zip(domains, own, strict=False)])
            for own in counts
        ]
        products = shares @ shares.T
        norms = np.diag(products) ** 0.5
        return [(own, {}) for own in rows], products / np.outer(norms, norms)
    if name == "conflict":
        n = min(n, len(data.of[domains[0]]) // SIX)
        parts = np.split(rng.permutation(data.of[domains[0]])[: SIX * n], SIX)
        letters = np.unique(data.answers)
        shifted = np.roll(rng.permutation(letters), 1)
        other = dict(zip(letters.tolist(), shifted.tolist(), strict=True))
        kinds = [i % 2 for i in range(SIX)]
        clients: list[Client] = [(part, other if kind else {}) for part, kind in zip(parts, kinds, strict=True)]
    else:
        sizes = {"apart": [1] * SIX, "loners": [2, 2, 1, 1, 1], "twelve": [3] * 4}[name]
        clients, kinds = [], []
        for kind, k in enumerate(sizes):
            clients += [(part, {}) for part in np.split(rng.permutation(data.of[domains[kind]])[: k * n], k)]
            kinds += [kind] * k
    return clients, np.equal.outer(kinds, kinds).astype(float)


def score(groups: list[str], common: Doubles, mixtures: bool) -> float:
    """The share of clients that are with all of their kind and nobody else, or of what is common within groups."""
    together = np.equal.outer(groups, groups)
    if not mixtures:
        return float(np.mean((together == (common > 0)).all(1)))
    others = common - np.diag(np.diag(common))
    return float((others * together).sum() / others.sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--items", default="10,20,44", help="of each client")
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--rows", type=int, default=4500, help="of CLINC150, from which clients are drawn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data = Rows(args.model, args.data_dir, args.rows)
    table: dict[str, dict[str, list[float]]] = {}
    print("items |", " | ".join(SCENES))
    for n in args.items.split(","):
        found = table[n] = {}
        for name in SCENES:
            draws = [scene(name, data, int(n), np.random.default_rng([int(n), seed])) for seed in range(args.draws)]
            scores = [score(data.groups(clients), common, "mix" in name) for clients, common in draws]
            error = float(np.std(scores, ddof=1) / len(scores) ** 0.5)
            found[name] = [round(100 * float(np.mean(scores)), 1), round(100 * error, 1)]
        print(n, "|", " | ".join(f"{mean:.0f} ± {error:.0f}" for mean, error in found.values()), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"model": Path(args.model).name, "right": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
