"""The server's side of a round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from capfl.errors import WireError
from capfl.maths.products import Products
from capfl.roles import Agreement, spent_on
from capfl.types import Adapter, ClientId, ServerState, Update
from capfl.wire import Message, advance, broadcast, decode_update, encode_broadcast


def start(agreement: Agreement) -> ServerState:
    """The state before the first round: clients know version 0."""
    return replace(agreement.method.init_server(agreement.initial), known=agreement.version_0)


def request(state: ServerState, client: ClientId, agreement: Agreement, again: bool = False) -> Message:
    """What one client is sent at the start of the next round.

    Args:
        again: the client has failed, so nothing is taken for granted about what it knows.
    """
    version = 0 if again else state.versions.get(client, 0)
    message = broadcast(state.told(client), client, version, agreement.initial, agreement.version_0)
    if agreement.method.brief:
        message = replace(message, notes=agreement.method.brief(state, client))
    return encode_broadcast(message, agreement.down, agreement.schema, agreement.method.kinds)


def read_update(reply: bytes, client: ClientId, round: int, agreement: Agreement) -> tuple[Update, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts.

    Raises:
        WireError: it does not fit, or belongs to another client or round.
    """
    update, parts = decode_update(reply, agreement.up, agreement.schema, agreement.initial, agreement.method.kinds)
    if update.client != client:
        raise WireError(f"reply of client {client!r} says that it comes from {update.client!r}")
    if update.round != round:
        raise WireError(f"reply of client {client!r} is for round {update.round}, this is round {round}")
    return update, parts


def close_round(
    state: ServerState, asked: Sequence[ClientId], updates: Iterable[Update], agreement: Agreement
) -> tuple[ServerState, float | None]:
    """Aggregate, and make the versions that clients will be told. Updates come one by one, by client id.

    Returns:
        The new state, and the relative error of what an inexact method aggregates (``maths.products``).
    """
    method = agreement.method
    inexact = method.exact is False
    changes: list[tuple[Adapter, float]] = []
    versions = {client: version for client, version in state.versions.items() if client not in asked}

    def heard() -> Iterator[Update]:
        for update in updates:
            versions[update.client] = state.round
            if inexact:
                changes.append((update.adapter, update.n_train))
            yield update

    new = method.aggregate(state, heard())
    error = Products(state.whole, changes).error(new.adapter) if inexact else None
    for client in list(versions):  # a group that was split off this round has the log of what it was split off from
        if new.told(client).log is not state.told(client).log:
            del versions[client]
    groups = {name: _next(group, state, agreement) for name, group in new.groups.items()}
    return replace(_next(new, state, agreement), versions=versions, groups=groups), error


def _next(new: ServerState, old: ServerState, agreement: Agreement) -> ServerState:
    """The state, or a group of it, with its next version: of the elements that ``old`` told clients to send."""
    new = replace(new, round=old.round + 1)
    importance = spent_on(old.notes, agreement.method).get("importance")
    return advance(new, agreement.method.broadcast(new), agreement.down, agreement.initial, importance)
