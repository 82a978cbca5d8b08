"""Who learns with whom: everybody with everybody, or (``peers``) clients with those whose data are like their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from capfl.methods.part import Part
from capfl.types import ClientId, ClientState, ServerState, Update


class Grouping(Part):
    """Divides clients into groups that share an adapter.

    Attributes:
        about: one line for lists of methods.
        describes: does a client describe its data, before it trains for the first time?
    """

    about: ClassVar[str]
    describes: ClassVar[bool] = False

    def start(self) -> object | None:
        """What the server keeps before round 1."""
        return None

    def described(self, description: object) -> object | None:
        """What a client keeps that has described its data."""
        return None

    def form(self, state: ServerState, updates: Mapping[ClientId, Update]) -> ServerState:
        """The state with the groups that the records of these updates lead to; their adapters are aggregated already.

        A client that is in a group stays there.
        """
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
