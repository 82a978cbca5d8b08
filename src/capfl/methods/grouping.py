"""Who learns with whom: everybody with everybody, or clients with peers, whom their data tell (``peers``) or the
operator (``given``)."""

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
        divides: are there groups, and may a client be alone in its own?
    """

    about: ClassVar[str]
    describes: ClassVar[bool] = False
    divides: ClassVar[bool] = False

    def start(self) -> object | None:
        """What the server keeps before round 1."""
        return None

    def divided(self, state: ServerState, clients: Sequence[ClientId]) -> ServerState:
        """The state before round 1, with the groups that are known by then."""
        return state

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

    def stands_alone(self, client: ClientId) -> bool:
        """Is it known before round 1 that the client has nobody to learn with?"""
        return False

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
