"""Who learns with whom: everybody with everybody, or (``peers``) clients with those whose data are like their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from capfl.methods.part import Part
from capfl.types import ClientId, ClientState, Introduction, ServerState


class Grouping(Part):
    """Divides clients into groups that share an adapter.

    Attributes:
        about: one line for lists of methods.
        describes: do clients say what their data are like, before they train for the first time?
    """

    about: ClassVar[str]
    describes: ClassVar[bool] = False

    def start(self) -> object | None:
        """What the server keeps before round 1."""
        return None

    def described(self, description: object) -> object | None:
        """What a client keeps that has described its data."""
        return None

    def unknown(self, state: ServerState, clients: Sequence[ClientId]) -> list[ClientId]:
        """Those of some clients who have yet to say what their data are like."""
        return []

    def check(self, said: Introduction) -> None:
        """Raises WireError: an introduction says what cannot be."""

    def form(self, state: ServerState, introductions: Mapping[ClientId, Introduction]) -> ServerState:
        """The state with the groups that what clients say of themselves leads to. A client in a group stays there."""
        return state

    def is_alone(self, memory: ClientState) -> bool:
        """Does the client go on from its own adapter, for want of others to learn with?"""
        return False

    def has_peers(self, memory: ClientState) -> bool:
        """Does the client know that it learns with others?"""
        return True

    def alike(self, state: ServerState, client: ClientId) -> dict[ClientId, float]:
        """The clients that a newcomer is like, each with a positive weight."""
        return {}


@dataclass(frozen=True)
class Everybody(Grouping):
    """One group of all clients."""

    about = "everybody"
