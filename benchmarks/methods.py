"""Methods of benchmarks/methods.toml and tuning.toml that are no choice of users: what it would be worth to know.

``true-groups`` is FedIT within the groups that the data were dealt out by. Clients of one domain are called DOMAIN-1,
DOMAIN-2 and so on; where labels are in conflict, every second client of 00, 01, ... has the other code book.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from capfl.methods import Method
from capfl.methods.peers import Peers, taken_down
from capfl.types import ClientId, Introduction, ServerState


@dataclass(frozen=True)
class TrueGroups(Peers):
    """Groups by the names of clients. What they say of their data is taken down and not looked at."""

    about = "the groups that the data were dealt out by"

    def form(self, state: ServerState, introductions: Mapping[ClientId, Introduction]) -> ServerState:
        state = taken_down(state, introductions)
        group_of = {**state.group_of, **{client: true_group(client) for client in introductions}}
        groups = {name: replace(state.everybody, since=state.round) for name in sorted(set(group_of.values()))}
        kept = replace(state.grouping, sizes=Counter(group_of.values()))  # type: ignore[type-var]
        return replace(state, grouping=kept, groups=groups | state.groups, group_of=group_of)


def true_group(client: ClientId) -> str:
    """By the number of a client, where it is nothing but that, or by its name without the number."""
    return f"book-{int(client) % 2}" if client.isdigit() else client.rpartition("-")[0] or client


METHODS = {
    "true-groups": Method(
        "true-groups", "FedIT within the true groups", "a reference", grouping=TrueGroups(),
    )
}  # fmt: skip
