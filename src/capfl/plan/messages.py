"""Bytes of messages by their parts, for a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

PARTS = ("header", "positions", "scales", "values", "records", "keys")

Parts = npt.NDArray[np.int64]
"""Bytes by part, (6,), in the order of ``PARTS``."""


def counted(ledger: Mapping[str, int], header: int = 0) -> Parts:
    """Parts as the ledger has them, and so many bytes of header more."""
    return np.array([ledger.get(part, 0) + header * (part == "header") for part in PARTS], np.int64)


@dataclass(frozen=True)
class Client:
    """The messages of one client.

    Attributes:
        met: the request for an introduction, and the introduction; empty if the method asks for none.
        first: its first request, without any difference.
        later: the same for all that follow.
        stranger: the same for the final delivery to a client that was never asked before.
        up: its update in round 1, 2, ...
        alone: the difference in round 1, 2, ... that is its update as it came.
    """

    met: tuple[Parts, ...]
    first: Parts
    later: Parts
    stranger: Parts
    up: Sequence[Parts]
    alone: Sequence[Parts]

    def called(self, longer: int) -> Client:
        """A client like this, with an id of so many bytes more."""
        more = counted({}, longer)
        return replace(
            self, met=tuple(n + more for n in self.met), first=self.first + more, later=self.later + more,
            stranger=self.stranger + more, up=[n + more for n in self.up],
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What messages take: of clients with ranks of their own, and of the server.

    Attributes:
        clients: the messages of each.
        group, together, whole: as in ``Traffic``, without any patch of the base.
    """

    clients: Sequence[Client]
    group: str | None
    together: Sequence[Parts]
    whole: Parts
