"""What is trained and what travels: both factors of every pair B A, one of them, one after the other, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from capfl.types import Adapter


@dataclass(frozen=True)
class Factors:
    """Which of the factors "A" and "B" clients train, round by round, and which of them cross the network.

    Attributes:
        trained: the factors of round 1, of round 2, and so on, over and over again.
        travel: the factors that server and clients send each other.
    """

    about: str
    trained: tuple[str, ...]
    travel: str

    def trains(self, round: int, name: str) -> bool:
        """Is the tensor ``name`` trained in a round (1, 2, ...)?"""
        return _factor(name) in self.trained[(round - 1) % len(self.trained)]

    def travels(self, name: str) -> bool:
        """Does the tensor ``name`` cross the network? A patch of the base, W, goes with both factors."""
        return _factor(name) in self.travel or (_factor(name) == "W" and self.travel == "AB")

    def sent(self, round: int, adapter: Adapter) -> list[str]:
        """The names of the tensors that a client's update of a round has."""
        return [name for name in adapter if _factor(name) in self.travel and self.trains(round, name)]

    def travelling(self, adapter: Adapter) -> Adapter:
        """The tensors of an adapter that cross the network."""
        return {name: t for name, t in adapter.items() if self.travels(name)}

    @property
    def whole(self) -> bool:
        """Do clients get all that they need for the server's model, but for what follows from the seed?"""
        return all(factor in self.travel for step in self.trained for factor in step)


def _factor(name: str) -> str:
    return name.rpartition(".")[2]


BOTH = Factors("A and B", ("AB",), "AB")
ONLY_A = Factors("A; B stays with the client", ("AB",), "A")
ONLY_B = Factors("B; A stays frozen", ("B",), "B")
ALTERNATING = Factors("B in odd rounds, A in even ones", ("B", "A"), "AB")
NOTHING = Factors("nothing", ("AB",), "")
