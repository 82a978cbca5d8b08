"""Groups of clients whose data look alike to the frozen base.

A client describes its data once, before it trains (``model.features``). The server compares descriptions
(``maths.peers``). Each group has an adapter of its own, which begins as that of everybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import cast

import numpy as np
import torch
from torch import Tensor

from capfl.errors import WireError
from capfl.maths.fourier import Doubles, Frame, fourier, frame_of, frequencies
from capfl.maths.peers import Clients, scaled, signal
from capfl.maths.placing import Rule, joined, place
from capfl.methods.grouping import Grouping
from capfl.types import ClientId, ClientState, Introduction, ServerState
from capfl.wire.records import vector

NEAR = 0.75  # distance up to which two clients are peers: a quarter in common, if their prompts are the same
FAR = 1.2  # no two clients count as farther apart: one of them may lie
MANY = 10  # times the median of the clients' items: nobody counts for more
LARGEST_STATE = 1e6  # of a base model, in any dimension


@dataclass(frozen=True)
class Description:
    """Client to server, once: what its data are like (``model.features.describe``)."""

    features: Tensor = vector("bf16")  # (d + b,): mean state of the prompts, and of prompts bound to their answers
    deviation: Tensor = vector("bf16")  # (d,): of the prompts' states
    answers: Tensor = vector("positive")  # (1,): effective number of distinct answers
    texts: Tensor | None = vector("bf16", optional=True)  # (2 d,): mean and deviation of answers that are texts


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
    """What the server keeps of clients' descriptions: a row of each, in the order in which they came."""

    clients: tuple[ClientId, ...]
    features: Tensor  # (n, d + b), as they came
    deviation: Tensor  # (n, d)
    answers: Tensor  # (n,)
    texts: Tensor  # (n, 2 d), zeros of clients whose answers are no texts; (n, 0) if all are such
    items: Tensor  # (n,) int64, as the clients say
    rounds: Tensor  # (n,) int64: in which they described their data

    @cached_property
    def row(self) -> Mapping[ClientId, int]:
        return {client: i for i, client in enumerate(self.clients)}


@dataclass(frozen=True)
class FrameState:
    """Origin and units of the prompts' features: ``maths.fourier.Frame`` in float64."""

    centre: Tensor
    spread: Tensor
    texts: Tensor  # (d,): spread of answers that are texts; (0,) if nobody has such
    sigma: float
    clients: int  # of whose descriptions it was made
    round: int  # when

    def frame(self) -> Frame:
        return Frame(self.centre.numpy(), self.spread.numpy(), self.sigma)


@dataclass(frozen=True)
class PeersState:
    """What the server keeps."""

    known: Known | None = None
    frame: FrameState | None = None
    formed: int = 0  # groups so far, those that have been left included: no name is given twice
    sizes: Mapping[str, int] = field(default_factory=dict)  # clients in each group


@dataclass(frozen=True)
class Peers(Grouping):
    """Groups by description.

    Args:
        distance: largest squared effect size between the prompts of peers; twice that if they answer alike, four
            times that if they write texts.
        dim: length of z, an even number.
        seed: draws the random features, which everybody must share.
    """

    distance: float = 0.08
    dim: int = 256
    seed: int = 0
    about = "peers, found by a description of their data"
    describes = True
    divides = True
    server_state = PeersState
    client_state = PeersMemory
    down = Placement
    up = Description

    def start(self) -> PeersState:
        return PeersState()

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
        kept, group = _kept(state), state.group_of.get(client)
        row = _row(state).get(client)
        is_new = row is not None and state.heard.get(client, 0) < max(
            int(_known(state).rounds[row]), _frame(state).round
        )
        if not is_new and group is None:
            return None
        n_peers = torch.tensor([float(kept.sizes[group])]) if group is not None else None
        return Placement(z=self.z(state, client) if is_new else None, n_peers=n_peers)

    def unknown(self, state: ServerState, clients: Sequence[ClientId]) -> list[ClientId]:
        return [client for client in clients if client not in _row(state)]

    def check(self, said: Introduction) -> None:
        """Numbers that a model and data can give."""
        description = cast("Description | None", said.grouping)
        if description is None:
            raise WireError("introduction does not describe the client's data")
        texts = torch.zeros(0) if description.texts is None else description.texts
        means, deviations = texts.tensor_split(2)
        for name, values, least in (
            ("features", description.features, -LARGEST_STATE),
            ("deviation", description.deviation, 0.0),
            ("answers", description.answers, 1.0),
            ("texts", means, -LARGEST_STATE),
            ("texts", deviations, 0.0),
        ):
            if bool(((values < least) | (values > LARGEST_STATE)).any()):
                raise WireError(f"Description.{name} has numbers that are not between {least:g} and {LARGEST_STATE:g}")

    def z(self, state: ServerState, client: ClientId) -> Tensor:
        """The client's random Fourier features, (dim,) float32 of length 1."""
        return self._z(state, [_row(state)[client]])[0]

    def _z(self, state: ServerState, rows: list[int]) -> Tensor:
        frame, known = _frame(state).frame(), _known(state)
        d = len(frame.centre)
        omega = _frequencies(self.seed, d, self.dim)
        return torch.from_numpy(fourier(known.features[rows, :d].double().numpy(), frame, omega)).float()

    def form(self, state: ServerState, introductions: Mapping[ClientId, Introduction]) -> ServerState:
        """Take down descriptions, and place their clients.

        A client goes to the nearest group, if that is near enough. Those for whom there is none form groups among
        themselves, with the adapter of everybody to begin with. A client that is alone in its group joins another one
        that turns out to be near: such as has changed, or any where the units have. See ``maths.placing``.
        """
        before = _kept(state).frame
        state = taken_down(state, introductions)
        new = [client for client in sorted(introductions) if client not in state.group_of]
        if not new:
            return state
        known, row, rule = _known(state), _row(state), Rule(self.distance, NEAR, FAR)
        members: dict[str, list[int]] = {}
        for client in known.clients:
            if client in state.group_of:
                members.setdefault(state.group_of[client], []).append(row[client])
        names, old = list(members), list(members.values())
        clients = _compared(known, _frame(state))
        placed = place(clients, old, [row[client] for client in new], rule)
        alone = [i for i, group in enumerate(old) if len(group) == len(placed[i]) == 1]
        same_units = _kept(state).frame is before
        changed = [i for i, group in enumerate(placed) if not same_units or i >= len(old) or len(group) > len(old[i])]
        placed = joined(clients, placed, alone, changed, rule)

        formed = _kept(state).formed + len(placed) - len(old)
        names += [f"group-{1 + _kept(state).formed + i}" for i in range(len(placed) - len(old))]
        groups, group_of = dict(state.groups), dict(state.group_of)
        for name, rows in zip(names, placed, strict=True):
            if not rows:
                groups.pop(name, None)
            elif name not in groups:
                groups[name] = replace(state.everybody, since=state.round)
            group_of |= {known.clients[i]: name for i in rows}
        kept = replace(_kept(state), formed=formed, sizes=Counter(group_of.values()))
        return replace(state, grouping=kept, groups=groups, group_of=group_of)

    def alike(self, state: ServerState, client: ClientId) -> dict[ClientId, float]:
        """The others of its group, or all others where it has none there: n_k max(0, z . z_k).

        n_k is up to ten times the median.
        """
        known, group = _known(state), state.group_of.get(client)
        others = [name for name in known.clients if name != client]
        chosen = [name for name in others if group is not None and state.group_of.get(name) == group] or others
        rows = [known.row[name] for name in chosen]
        items = known.items.clamp(max=MANY * int(known.items.median()))[rows]
        weights = items * (self._z(state, rows) @ self.z(state, client))
        return {name: weight for name, weight in zip(chosen, weights.tolist(), strict=True) if weight > 0}


@lru_cache(maxsize=4)
def _frequencies(seed: int, d: int, dim: int) -> Doubles:
    return frequencies(seed, d, dim)


def _kept(state: ServerState) -> PeersState:
    return cast(PeersState, state.grouping)


def _known(state: ServerState) -> Known:
    known = _kept(state).known
    assert known is not None
    return known


def _row(state: ServerState) -> Mapping[ClientId, int]:
    known = _kept(state).known
    return known.row if known else {}


def _n_peers(memory: ClientState) -> int:
    kept = cast("PeersMemory | None", memory.grouping)
    return kept.n_peers if kept else 0


def _frame(state: ServerState) -> FrameState:
    frame = _kept(state).frame
    assert frame is not None
    return frame


def taken_down(state: ServerState, introductions: Mapping[ClientId, Introduction]) -> ServerState:
    """The state with the descriptions of clients that had given none.

    The frame is made anew when twice as many clients have described their data as when it was made, so that a few that
    came first do not decide for all.
    """
    kept, round, before = _kept(state), state.round + 1, _row(state)
    new = {client: said for client, said in sorted(introductions.items()) if client not in before}
    if not new:
        return state
    said = [cast(Description, one.grouping) for one in new.values()]
    known = Known(
        tuple(new),
        torch.stack([one.features for one in said]).bfloat16(),
        torch.stack([one.deviation for one in said]).bfloat16(),
        torch.cat([one.answers for one in said]).float(),
        _padded([torch.zeros(1, 0) if one.texts is None else one.texts[None] for one in said]),
        torch.tensor([one.n_train for one in new.values()]),
        torch.full((len(new),), round),
    )
    if kept.known is not None:
        tensors = ("features", "deviation", "answers", "items", "rounds")
        grown = {name: torch.cat([getattr(kept.known, name), getattr(known, name)]) for name in tensors}
        grown["texts"] = _padded([kept.known.texts, known.texts])
        known = Known(kept.known.clients + known.clients, **grown)
    frame = kept.frame
    first_text = frame is not None and 2 * len(frame.texts) < known.texts.shape[1]
    if frame is None or first_text or len(known.clients) >= 2 * frame.clients:
        frame = _frame_of(known, round)
    return replace(state, grouping=replace(kept, known=known, frame=frame))


def _frame_of(known: Known, round: int) -> FrameState:
    """Origin and units as the median client gives them: how many items a client has is its own claim."""
    spread = np.median(known.deviation.float().numpy(), axis=0).astype(np.float64)
    frame = frame_of(known.features[:, : len(spread)].double().numpy(), spread=spread)
    centre, units = torch.from_numpy(frame.centre), torch.from_numpy(frame.spread)
    texts, d = known.texts[known.texts.any(1)].double().numpy(), known.texts.shape[1] // 2
    of_texts = frame_of(texts[:, :d], spread=np.median(texts[:, d:], axis=0)).spread if d else np.zeros(0)
    return FrameState(centre, units, torch.from_numpy(of_texts), frame.sigma, len(known.clients), round)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """One below the other, (n, widest), in bfloat16, with zeros for what some do not have."""
    widest = max(row.shape[1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row.bfloat16(), (0, widest - row.shape[1])) for row in rows])


def _compared(known: Known, state: FrameState) -> Clients:
    """All clients in the frame's units, in float32: features came as bfloat16."""
    frame = state.frame()
    features, d = known.features.float().numpy(), len(frame.centre)
    spread = frame.spread.astype(np.float32)
    bound_spread = np.tile(spread, (features.shape[1] - d) // d)  # signs do not change it
    prompts = scaled(features[:, :d] - frame.centre.astype(np.float32), spread)
    bound, items = scaled(features[:, d:], bound_spread), known.items.double().numpy()
    texts = None
    if len(state.texts):
        texts = scaled(known.texts[:, : len(state.texts)].float().numpy(), state.texts.float().numpy())
        texts[~known.texts.any(1).numpy()] = np.nan
    answers = known.answers.double().numpy()
    return Clients(prompts, bound, items, signal(bound, items, answers), texts, answers)
