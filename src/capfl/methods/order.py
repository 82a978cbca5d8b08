"""In which order the members of a group train in a round: together, or one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capfl.rng import stream
from capfl.types import EVERYBODY, ClientId


@dataclass(frozen=True)
class Order:
    """The members of a group train in turns: each turn starts from what the one before has left.

    With one turn all train together, and the group's next version is the mean of what they did. With as many turns as
    there are members each starts from what the member before it left: training in turn. In between, members are dealt
    out to the turns evenly, in an order that chance draws anew for every round. Groups take their turns at the same
    time. Every client trains once in a round, so a round takes as many times as long as it has turns.

    Attributes:
        turns: most turns that a group takes in a round.
    """

    turns: int = 1

    @property
    def about(self) -> str:
        return "together" if self.turns == 1 else f"in turn, in up to {self.turns} turns a round"

    def of_round(
        self, clients: Sequence[ClientId], group_of: Mapping[ClientId, str], seed: int, round: int
    ) -> list[list[ClientId]]:
        """The clients of each turn, sorted by id; every client is in one of them, and no turn is empty.

        Args:
            clients: all that train in this round.
            group_of: the groups of those who are in another one than EVERYBODY.
        """
        members: dict[str, list[ClientId]] = {}
        for client in sorted(clients):
            members.setdefault(group_of.get(client, EVERYBODY), []).append(client)
        turns: dict[int, list[ClientId]] = {}
        for name, group in members.items():
            drawn = stream(seed, "order", name, round).permutation(len(group))
            n = min(self.turns, len(group))
            for place, member in enumerate(drawn):
                turns.setdefault(place * n // len(group), []).append(group[member])
        return [sorted(turns[turn]) for turn in sorted(turns)]
