"""Which ranks a client has: all of them, a share that the server gives it, or (``posterior``) those it finds useful."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.methods.part import Part
from capfl.types import Adapter, ClientId, ClientState, Penalty, ServerState, Trained, Update
from capfl.wire.records import vector


class Ranks(Part):
    """Marks and numbers of ranks are vectors (n,) over all ranks of all modules, in the adapter's order.

    Attributes:
        about: one line for lists of methods.
        differ: has one client other ranks than another?
    """

    about: ClassVar[str]
    differ: ClassVar[bool] = False

    def start(self, initial: Adapter, clients: Sequence[ClientId]) -> object | None:
        """What the server keeps before round 1."""
        return None

    def importance(self, kept: object | None) -> Tensor | None:
        """How a message's budget is shared over ranks, (n,), by what its sender keeps. None: all are alike.

        A client sends nothing of a rank of importance 0.
        """
        return None

    def of_client(self, state: ServerState, client: ClientId) -> Tensor | None:
        """The importance that a client's message goes by, as the server knows it."""
        return self.importance(state.ranks)

    def trained(self, kept: object | None) -> Tensor | None:
        """Marks of the ranks that a client trains and sends, by what it keeps. None: all."""
        return None

    def in_own_model(self, said: object | None) -> Tensor | None:
        """Marks of the ranks that a client's own model has, by what it keeps or reports. None: all."""
        return None

    def kappa(self, said: object | None) -> Tensor | None:
        """The importance of every rank to a client over its mean, by what it reports. None: not known."""
        return None

    def penalty(self, received: Adapter, memory: ClientState, n_train: int) -> Penalty | None:
        """What moves the factors after each of its steps."""
        return None

    def report(self, memory: ClientState) -> object | None:
        """What the client says beside its change: an ``up``, or None."""
        return None

    def check(self, state: ServerState, update: Update) -> None:
        """Raises WireError: the update's record says what cannot be."""

    def learn(self, trained: Trained, memory: ClientState, n_train: int) -> object | None:
        """What the client keeps after a round of training."""
        return memory.ranks

    def combine(self, state: ServerState, updates: Mapping[ClientId, Update]) -> object | None:
        """What the server keeps after a round, by the updates' records."""
        return state.ranks

    # where the server sees sums alone (``methods.secure``)

    def n_summed(self, n: int) -> int:
        """How many numbers a client adds to a sum, of an adapter with so many ranks."""
        return 0

    def to_sum(self, memory: ClientState) -> npt.ArrayLike:
        """These numbers, (n_summed,), each from 0 to a few hundred: what the client says in the place of a report."""
        return ()

    def check_mean(self, mean: npt.NDArray[np.float64]) -> None:
        """Raises WireError: it is not the mean of such numbers."""

    def combine_mean(self, state: ServerState, mean: npt.NDArray[np.float64]) -> object | None:
        """As ``combine``, by the mean of all clients' numbers."""
        return state.ranks

    def welcome(self, state: ServerState, client: ClientId, alike: Mapping[ClientId, float]) -> object | None:
        """What the server keeps when a client joins that is like others to some degree (positive weights)."""
        return state.ranks


@dataclass(frozen=True)
class AllRanks(Ranks):
    """Every client trains and sends every rank."""

    about = "all"


@dataclass(frozen=True)
class GivenRanks:
    """Marks (n,) of the ranks that a client has."""

    marks: Tensor = vector("marks")


@dataclass(frozen=True)
class SharesState:
    """At the server: whose ranks are which."""

    given: Mapping[ClientId, GivenRanks]
    every: GivenRanks


@dataclass(frozen=True)
class Shares(Ranks):
    """Client number i in the order of ids has the first max(1, round(share r)) ranks of every module.

    Shares are dealt out in turn. A client that comes later has all ranks. Every client is sent the whole adapter; it
    trains and sends its own ranks of it.
    """

    shares: tuple[float, ...]
    about = "a share of the ranks, given by the server"
    differ = True
    server_state = SharesState
    client_state = GivenRanks
    down = GivenRanks

    def start(self, initial: Adapter, clients: Sequence[ClientId]) -> SharesState:
        given = {
            client: GivenRanks(first_ranks(self.shares[i % len(self.shares)], initial))
            for i, client in enumerate(sorted(clients))
        }
        return SharesState(given, GivenRanks(first_ranks(1.0, initial)))

    def announce(self, state: ServerState, client: ClientId) -> GivenRanks:
        kept = cast(SharesState, state.ranks)
        return kept.given.get(client, kept.every)

    def remember(self, said: object | None, memory: ClientState) -> object | None:
        return said

    def importance(self, kept: object | None) -> Tensor | None:
        """A client's own ranks are all alike. None for the server, whose answer has all ranks."""
        return kept.marks if isinstance(kept, GivenRanks) else None

    def of_client(self, state: ServerState, client: ClientId) -> Tensor:
        return self.announce(state, client).marks

    def trained(self, kept: object | None) -> Tensor | None:
        return None if kept is None else cast(GivenRanks, kept).marks.bool()

    def in_own_model(self, said: object | None) -> Tensor | None:
        return self.trained(said)


def first_ranks(share: float, adapter: Adapter) -> Tensor:
    """Marks (n,) float32 of the first max(1, round(share r)) ranks of every module, in the adapter's order."""
    sizes = algebra.ranks(adapter).values()
    return torch.cat([(torch.arange(r) < max(1, int(share * r + 0.5))).float() for r in sizes])
