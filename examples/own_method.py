"""A method of your own: a row of parts, of which one is your own.

    python examples/own_method.py [--model tiny] [--out runs/own_method]

Here clients train one after the other, always in the order of their names, and take home half of their last steps. All
other parts are those of FedIT. `capfl methods` lists the parts of all methods, and docs/methods.md explains them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from three_sites import train

from capfl.methods import Method
from capfl.methods.order import Order
from capfl.methods.take_home import AfterSteps


@dataclass(frozen=True)
class ByName(Order):
    """One client a turn, always in the order of their names; those beyond the last turn share it."""

    @property
    def about(self) -> str:
        return f"one after the other by name, in up to {self.turns} turns a round"

    def of_round(self, clients: Sequence[str], group_of: Mapping[str, str], seed: int, round: int) -> list[list[str]]:
        ordered = sorted(clients)
        alone, together = ordered[: self.turns - 1], ordered[self.turns - 1 :]
        return [[client] for client in alone] + ([together] if together else [])


ROW = Method(
    "by-name", "one after the other, by name", "examples/own_method.py",
    order=ByName(turns=3), takes_home=AfterSteps(0.5),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", default="runs/own_method")
    args = parser.parse_args()
    result = train(args.model, args.out, method=ROW)
    print(result.summary.method)
    for site, row in result.clients.items():
        print(f"{site}: alone {row.local_only:.0%}, personal {row.personal:.0%}, {row.bytes_up / 1000:.1f} kB up")


if __name__ == "__main__":
    main()
