"""Clients whose adapters have ranks of their own, for any method that says A and B to all of them.

A client has the first ranks of every module, a share of them that the server tells it. It trains and sends no others.
Where the server's adapter goes down, clients of one share are a group, which is told these ranks alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.methods.base import ALIVE, Method
from capfl.types import Adapter, ClientId, ClientState, Notes, ServerState, Update


def unequal(method: Method, shares: Sequence[float]) -> Method:
    """The method with ranks max(1, round(share r)); shares are dealt out in turn, by client id. None: as it is."""
    if not shares:
        return method

    def init_server(init: Adapter) -> ServerState:
        server = method.init_server(init)
        return replace(server, notes=server.notes | {ALIVE: first_ranks(1.0, init).float()})

    def enrol(server: ServerState, clients: Sequence[ClientId]) -> ServerState:
        share_of = {client: shares[i % len(shares)] for i, client in enumerate(sorted(clients))}
        notes = server.notes | {
            f"{ALIVE}/{client}": first_ranks(share, server.adapter).float() for client, share in share_of.items()
        }
        if method.relay:  # everybody is told the same, which is what the others have sent
            return replace(server, notes=notes)
        groups = {f"{s:g}": replace(server, notes={ALIVE: first_ranks(s, server.adapter).float()}) for s in shares}
        return replace(server, notes=notes, groups=groups, group_of={c: f"{s:g}" for c, s in share_of.items()})

    def brief(server: ServerState, client: ClientId) -> Notes:
        return {ALIVE: server.notes.get(f"{ALIVE}/{client}", server.notes[ALIVE])}  # who comes later has them all

    def heed(told: Notes, memory: ClientState) -> ClientState:
        memory = method.heed(told, memory) if method.heed else memory
        return replace(memory, notes={ALIVE: told[ALIVE]} | memory.notes)  # it may have dropped some since

    def install(received: Adapter, memory: ClientState) -> Adapter:
        return algebra.without(method.install(received, memory), ~living(memory.notes))

    def inspect(server: ServerState, update: Update) -> None:
        """Marks of every rank: one at least of each module, and none that the client was not told to have."""
        told, said = brief(server, update.client)[ALIVE], update.notes.get(ALIVE)
        if said is None or said.shape != told.shape:
            raise WireError(f"note {ALIVE!r} is not {len(told)} marks, one a rank")
        if bool((said > told).any()):
            raise WireError(f"note {ALIVE!r} has ranks that the client was not told to have")
        if not all(algebra.living(said, server.adapter)):
            raise WireError(f"note {ALIVE!r} leaves a module without any rank")

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        new = method.aggregate(server, updates)
        groups = {name: told_first(new.adapter, group) for name, group in new.groups.items()}
        return replace(new, groups=groups)

    def told_first(adapter: Adapter, group: ServerState) -> ServerState:
        marks = living(group.notes)
        return replace(
            group, adapter=algebra.add(algebra.without(adapter, ~marks), algebra.without(group.adapter, marks))
        )

    def alive(notes: Notes) -> Tensor | None:
        return living(notes) if ALIVE in notes else None

    return replace(
        method,
        travels=f"{method.travels}, of the client's ranks",
        init_server=init_server,
        enrol=enrol,
        install=install,
        aggregate=aggregate,
        kinds={**method.kinds, ALIVE: "marks"},
        brief=brief,
        heed=heed,
        report=lambda memory: {ALIVE: memory.notes[ALIVE]},
        inspect=inspect,
        importance=lambda notes: torch.ones_like(notes[ALIVE]) if ALIVE in notes else None,
        sends=alive,
        alive=alive,
    )


def first_ranks(share: float, adapter: Adapter) -> Tensor:
    """Marks (n,) of the first max(1, round(share r)) ranks of every module, in the adapter's order."""
    return torch.cat([torch.arange(r) < max(1, int(share * r + 0.5)) for r in algebra.ranks(adapter).values()])


def living(notes: Notes) -> Tensor:
    """Which ranks a client has, (n,) bool."""
    return notes[ALIVE].bool()
