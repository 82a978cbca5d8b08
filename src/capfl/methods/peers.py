"""Groups of clients whose data look alike to the frozen base.

A client describes its data once, before it trains (``model.features``). The server compares descriptions
(``maths.peers``). Each group has an adapter of its own, which begins as that of everybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import Tensor

from capfl.errors import WireError
from capfl.maths.fourier import Doubles, Frame, fourier, frame_of, frequencies
from capfl.maths.peers import agreement, clusters, effect_sizes
from capfl.methods.grouping import Grouping
from capfl.types import ClientId, ClientState, Introduction, ServerState
from capfl.wire.records import vector

NEAR = 0.65  # distance up to which clients are peers: an agreement of 0.35, were their prompts the same
LARGEST_STATE = 1e6  # of a base model, in any dimension


@dataclass(frozen=True)
class Description:
    """Client to server, once: what its data are like (``model.features.describe``)."""

    features: Tensor = vector("bf16")  # (d + b,): mean state of the prompts, and of prompts bound to their answers
    deviation: Tensor = vector("bf16")  # (d,): of the prompts' states
    answers: Tensor = vector("positive")  # (1,): effective number of distinct answers


@dataclass(frozen=True)
class Placement:
    """Server to client: the client's place among the others."""

    z: Tensor | None = vector("bf16", optional=True)  # (dim,): random Fourier features of its data, told once
    n_peers: Tensor | None = vector("positive", optional=True)  # (1,): clients in its group, itself included


@dataclass(frozen=True)
class PeersMemory:
    """What a client keeps that has described its data."""

    z: Tensor | None = None
    n_peers: int = 0  # 0: not known yet


@dataclass(frozen=True)
class Known:
    """What the server keeps of one client's description."""

    features: Tensor
    deviation: Tensor
    answers: float
    items: int
    round: int  # in which the client described its data


@dataclass(frozen=True)
class FrameState:
    """Origin and units of the prompts' features: ``maths.fourier.Frame`` in float64."""

    centre: Tensor
    spread: Tensor
    sigma: float
    clients: int  # of whose descriptions it was made
    round: int  # when

    def frame(self) -> Frame:
        return Frame(self.centre.numpy(), self.spread.numpy(), self.sigma)


@dataclass(frozen=True)
class PeersState:
    """What the server keeps."""

    clients: Mapping[ClientId, Known]
    frame: FrameState | None = None
    formed: int = 0  # groups so far, those that have been left included: no name is given twice


@dataclass(frozen=True)
class Peers(Grouping):
    """Groups by description.

    Args:
        distance: largest squared effect size between the prompts of peers that answer alike.
        dim: length of z, an even number.
        seed: draws the random features, which everybody must share.
    """

    distance: float = 0.08
    dim: int = 256
    seed: int = 0
    about = "peers, by a description of their data"
    describes = True
    server_state = PeersState
    client_state = PeersMemory
    down = Placement
    up = Description

    def start(self) -> PeersState:
        return PeersState({})

    # -- client --------------------------------------------------------------------------------------

    def described(self, description: object) -> PeersMemory:
        return PeersMemory()

    def remember(self, said: object | None, memory: ClientState) -> object | None:
        kept, told = cast("PeersMemory | None", memory.grouping), cast("Placement | None", said)
        if told is None:
            return kept
        kept = kept or PeersMemory()  # it has introduced itself, and lost its state since
        n_peers = kept.n_peers if told.n_peers is None else int(told.n_peers[0])
        return replace(kept, z=kept.z if told.z is None else told.z, n_peers=n_peers)

    def is_alone(self, memory: ClientState) -> bool:
        """It has no peers as far as it knows. A newcomer without peers, which has not trained, takes what all have."""
        n = _n_peers(memory)
        return n == 0 or (n == 1 and memory.trained > 0)

    def has_peers(self, memory: ClientState) -> bool:
        return _n_peers(memory) > 1

    # -- server --------------------------------------------------------------------------------------

    def announce(self, state: ServerState, client: ClientId) -> Placement | None:
        known = _kept(state).clients.get(client)
        is_new = known is not None and state.heard.get(client, 0) < max(known.round, _frame(state).round)
        group = state.group_of.get(client)
        if not is_new and group is None:
            return None
        n_peers = torch.tensor([float(Counter(state.group_of.values())[group])]) if group is not None else None
        return Placement(z=self.z(state, client) if is_new else None, n_peers=n_peers)

    def unknown(self, state: ServerState, clients: Sequence[ClientId]) -> list[ClientId]:
        return [client for client in clients if client not in _kept(state).clients]

    def check(self, said: Introduction) -> None:
        """Numbers that a model and data can give."""
        description = cast("Description | None", said.grouping)
        if description is None:
            raise WireError("introduction does not describe the client's data")
        for name, least in (("features", -LARGEST_STATE), ("deviation", 0.0), ("answers", 1.0)):
            values: Tensor = getattr(description, name)
            if bool(((values < least) | (values > LARGEST_STATE)).any()):
                raise WireError(f"Description.{name} has numbers that are not between {least:g} and {LARGEST_STATE:g}")

    def z(self, state: ServerState, client: ClientId) -> Tensor:
        """The client's random Fourier features, (dim,) float32 of length 1."""
        frame = _frame(state).frame()
        d = len(frame.centre)
        omega = _frequencies(self.seed, d, self.dim)
        return torch.from_numpy(fourier(_kept(state).clients[client].features[:d].numpy(), frame, omega)).float()

    def form(self, state: ServerState, introductions: Mapping[ClientId, Introduction]) -> ServerState:
        """Take down descriptions, and place their clients.

        A client goes to the group whose members are nearest on average, if that is near enough. Those for whom there is
        none form groups among themselves, with the adapter of everybody to begin with. A client that is alone in its
        group joins another one that turns out to be near.
        """
        state = _taken_down(state, introductions)
        new = [client for client in sorted(introductions) if client not in state.group_of]
        if not new:
            return state
        members = [client for client in state.group_of if client in _kept(state).clients]
        names = members + new
        apart = _distances(state, names, self.distance)

        groups, group_of = dict(state.groups), dict(state.group_of)
        strangers: list[int] = []
        for at in range(len(members), len(names)):
            if (near := _nearest(at, apart, names, state.group_of)) is not None:
                group_of[names[at]] = near
            else:
                strangers.append(at)
        labels, formed = clusters(apart[np.ix_(strangers, strangers)], NEAR), _kept(state).formed
        for at, label in zip(strangers, labels, strict=True):
            group_of[names[at]] = name = f"group-{1 + formed + label}"
            groups[name] = replace(state.everybody, since=state.round)
        state = replace(state, grouping=replace(_kept(state), formed=formed + len(set(labels))))
        for at, client in enumerate(names):
            own = group_of[client]
            if list(group_of.values()).count(own) == 1 and (near := _nearest(at, apart, names, group_of)) is not None:
                group_of[client] = near
                del groups[own]
        return replace(state, groups=groups, group_of=group_of)

    def alike(self, state: ServerState, client: ClientId) -> dict[ClientId, float]:
        """The others of its group, or all others where it has none there: n_k max(0, z . z_k)."""
        clients, group = _kept(state).clients, state.group_of.get(client)
        others = [name for name in clients if name != client]
        own = [name for name in others if group is not None and state.group_of.get(name) == group]
        z = self.z(state, client)
        weights = {name: clients[name].items * float(z @ self.z(state, name)) for name in own or others}
        return {name: weight for name, weight in weights.items() if weight > 0}


@lru_cache(maxsize=4)
def _frequencies(seed: int, d: int, dim: int) -> Doubles:
    return frequencies(seed, d, dim)


def _kept(state: ServerState) -> PeersState:
    return cast(PeersState, state.grouping)


def _n_peers(memory: ClientState) -> int:
    kept = cast("PeersMemory | None", memory.grouping)
    return kept.n_peers if kept else 0


def _frame(state: ServerState) -> FrameState:
    frame = _kept(state).frame
    assert frame is not None
    return frame


def _taken_down(state: ServerState, introductions: Mapping[ClientId, Introduction]) -> ServerState:
    """The state with the descriptions of clients that had given none.

    The frame is made anew when twice as many clients have described their data as when it was made, so that a few that
    came first do not decide for all.
    """
    kept = _kept(state)
    new = {client: said for client, said in introductions.items() if client not in kept.clients}
    if not new:
        return state
    known = dict(kept.clients)
    for client, said in new.items():
        of = cast(Description, said.grouping)
        known[client] = Known(of.features, of.deviation, float(of.answers[0]), said.n_train, state.round + 1)
    frame = kept.frame
    if frame is None or len(known) >= 2 * frame.clients:
        frame = _frame_of(list(known.values()), state.round + 1)
    return replace(state, grouping=replace(kept, clients=known, frame=frame))


def _frame_of(known: list[Known], round: int) -> FrameState:
    """Origin and units as the median client gives them: how many items a client has is its own claim."""
    spread = np.median([one.deviation.double().numpy() for one in known], axis=0)
    prompts = np.stack([one.features.double().numpy()[: len(spread)] for one in known])
    frame = frame_of(prompts, spread=spread)
    return FrameState(
        torch.from_numpy(frame.centre), torch.from_numpy(frame.spread), frame.sigma, len(known), round
    )  # fmt: skip


def _nearest(at: int, apart: Doubles, names: list[ClientId], group_of: Mapping[ClientId, str]) -> str | None:
    """The group, other than its own, whose members are nearest to client number ``at`` on average.

    None: none is near enough.
    """
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name in group_of and group_of[name] != group_of.get(names[at]):
            members.setdefault(group_of[name], []).append(i)
    means = {group: float(np.mean(apart[at, own])) for group, own in members.items()}
    nearest = min(means, key=lambda group: means[group], default=None)
    return nearest if nearest is not None and means[nearest] <= NEAR else None


def _distances(state: ServerState, names: list[ClientId], largest: float) -> Doubles:
    """Distances (n, n) with NEAR the largest between peers: half of it may come from prompts, or all from answers."""
    frame, known = _frame(state).frame(), [_kept(state).clients[name] for name in names]
    features = np.stack([one.features.double().numpy() for one in known])
    items, answers = np.array([float(one.items) for one in known]), np.array([one.answers for one in known])
    prompts, bound = np.split(features, [len(frame.centre)], axis=1)
    spread = np.tile(frame.spread, bound.shape[1] // len(frame.spread))  # signs do not change it
    unlike = effect_sizes(prompts - frame.centre, frame.spread, items)
    apart: Doubles = NEAR * unlike / largest + 1 - agreement(bound, spread, items, answers)
    return apart
