"""Groups of clients whose data look alike to the frozen base. What the server knows of them is in its notes.

Each group has an adapter of its own, split off from that of everybody when its first member has been heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from capfl.errors import WireError
from capfl.maths.fourier import Doubles, Frame, fourier, frame_of
from capfl.maths.peers import agreement, clusters, effect_sizes
from capfl.types import ClientId, Notes, ServerState

NEAR = 0.65  # distance up to which clients are peers: an agreement of 0.35, were their prompts the same
LARGEST_STATE = 1e6  # of a base model, in any dimension
DESCRIPTION = ("features", "deviation", "answers")  # what a client says of its data
EVERYBODY = ""  # the name of the group that all clients are in


def is_known(server: ServerState, client: ClientId) -> bool:
    """Has the client described its data?"""
    return f"features/{client}" in server.notes


def is_new(server: ServerState, client: ClientId) -> bool:
    """Has the server seen the client's features, and cannot know that the client has been told what they say?"""
    seen = server.notes.get(f"round/{client}")
    return seen is not None and server.versions.get(client, 0) < float(seen[0])


def count(server: ServerState, client: ClientId) -> Notes:
    """A note of how many clients there are in the client's group, itself included; none if it is in no group."""
    if client not in server.group_of:
        return {}
    of = server.group_of[client]
    return {"peers": torch.tensor([float(sum(name == of for name in server.group_of.values()))])}


def fourier_of(server: ServerState, client: ClientId, omega: Callable[[int], Doubles]) -> torch.Tensor:
    """The client's random Fourier features z, (dim,) float32. ``omega`` gives the frequencies for d features."""
    frame = _frame(server.notes)
    d = len(frame.centre)
    return torch.from_numpy(fourier(server.notes[f"features/{client}"][:d].numpy(), frame, omega(d))).float()


def fellows(server: ServerState, client: ClientId) -> dict[ClientId, float]:
    """The other clients of its group, or all others where it has none there, with their numbers of items."""
    known = [name.removeprefix("items/") for name in server.notes if name.startswith("items/")]
    others = [name for name in known if name != client]
    group = server.group_of.get(client)
    own = [name for name in others if group is not None and server.group_of.get(name) == group]
    return {name: float(server.notes[f"items/{name}"][0]) for name in own or others}


def inspect(said: Notes) -> None:
    """Raises WireError: a description that lacks a part, or with numbers that no model and no data give."""
    there = [name for name in DESCRIPTION if name in said]
    if there and len(there) < len(DESCRIPTION):
        raise WireError(f"a description of data is {', '.join(DESCRIPTION)}, and a client said {', '.join(there)} only")
    for name in there:
        least = {"features": -LARGEST_STATE, "deviation": 0.0, "answers": 1.0}[name]
        if bool(((said[name] < least) | (said[name] > LARGEST_STATE)).any()):
            raise WireError(f"note {name!r} has numbers that are not between {least:g} and {LARGEST_STATE:g}")


def introduced(server: ServerState, described: Mapping[ClientId, Notes]) -> ServerState:
    """The state with the features of clients that have just described their data, if it was for the first time.

    Args:
        described: notes ``features`` (d + b,) of the clients' prompts and of prompts bound to answers, ``deviation``
            (d,), ``answers`` and ``items`` (1,): ``model.features.Description``.
    """
    new = {client: notes for client, notes in described.items() if not is_known(server, client)}
    if not new:
        return server
    notes = server.notes | {
        f"{what}/{client}": value
        for client, said in new.items()
        for what, value in (
            ("features", said["features"]), ("answers", said["answers"]), ("items", said["items"]),
            ("round", torch.tensor([server.round + 1.0])),
        )
    }  # fmt: skip
    if "frame/centre" not in notes:
        notes |= _first_frame(list(new.values()))
    return replace(server, notes=notes)


def placed(server: ServerState, candidates: Sequence[ClientId], largest: float) -> ServerState:
    """The state with a group for each of the clients that has none.

    A client goes to the group whose members are nearest on average, if that is near enough. Those for whom there is
    none form groups among themselves, with the adapter of everybody to begin with.

    Args:
        largest: effect size between peers that answer alike.
    """
    new = [client for client in candidates if client not in server.group_of]
    if not new:
        return server
    notes = server.notes
    known = [client for client in server.group_of if is_known(server, client)]
    names = known + new
    apart = _apart(notes, names, largest)

    group_of, strangers = dict(server.group_of), []
    for at, client in enumerate(names[len(known) :], len(known)):
        means = {
            group: float(np.mean([apart[at, i] for i, other in enumerate(known) if server.group_of[other] == group]))
            for group in server.groups
        }
        nearest = min(means, key=lambda group: means[group], default=None)
        if nearest is not None and means[nearest] <= NEAR:
            group_of[client] = nearest
        else:
            strangers.append(at)
    split_off = replace(server, groups={}, group_of={}, versions={}, notes={})
    first = len(server.groups)
    groups = dict(server.groups)
    for at, label in zip(strangers, clusters(apart[np.ix_(strangers, strangers)], NEAR), strict=True):
        group_of[names[at]] = f"{first + label:04d}"
        groups[f"{first + label:04d}"] = split_off
    return replace(server, groups=groups, group_of=group_of)


def _apart(notes: Notes, names: list[ClientId], largest: float) -> Doubles:
    """Distances (n, n) with NEAR the largest between peers: half of it may come from prompts, or all from answers."""
    features = np.stack([notes[f"features/{client}"].double().numpy() for client in names])
    items, answers = (
        np.array([float(notes[f"{what}/{client}"][0]) for client in names]) for what in ("items", "answers")
    )
    frame = _frame(notes)
    prompts, bound = np.split(features, [len(frame.centre)], axis=1)
    spread = np.tile(frame.spread, bound.shape[1] // len(frame.spread))  # signs do not change it
    unlike = effect_sizes(prompts - frame.centre, frame.spread, items)
    apart: Doubles = NEAR * unlike / largest + 1 - agreement(bound, spread, items, answers)
    return apart


def _frame(notes: Notes) -> Frame:
    """Of the prompts' features."""
    centre, spread, sigma = (notes[f"frame/{name}"].numpy() for name in ("centre", "spread", "sigma"))
    return Frame(centre, spread, float(sigma[0]))


def _first_frame(described: list[Notes]) -> Notes:
    """Units and origin that the first clients give: everybody's, from then on."""
    weights = np.array([float(notes["items"][0]) for notes in described])
    variance = np.average([notes["deviation"].double().numpy() ** 2 for notes in described], axis=0, weights=weights)
    prompts = np.stack([notes["features"].double().numpy()[: len(variance)] for notes in described])
    frame = frame_of(prompts, spread=np.sqrt(variance))
    parts = (("centre", frame.centre), ("spread", frame.spread), ("sigma", [frame.sigma]))
    return {f"frame/{name}": torch.tensor(value, dtype=torch.float64) for name, value in parts}
