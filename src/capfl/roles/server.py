"""The server's side of a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from capfl.errors import WireError
from capfl.roles import Agreement
from capfl.types import Broadcast, ClientId, ServerState, Update
from capfl.wire import decode_update, encode_broadcast


def open_round(state: ServerState, clients: Sequence[ClientId], agreement: Agreement) -> dict[ClientId, bytes]:
    """The request for each client, encoded."""
    requests = {}
    for client in clients:
        message = Broadcast(state.round + 1, client, agreement.method.broadcast(state, client))
        requests[client] = encode_broadcast(message, agreement.codec, agreement.initial)
    return requests


def read_update(reply: bytes, client: ClientId, round: int, agreement: Agreement) -> Update:
    """Decode one reply.

    Raises:
        WireError: it does not fit, or belongs to another client or round.
    """
    update = decode_update(reply, agreement.codec, agreement.initial)
    if update.client != client:
        raise WireError(f"reply of client {client!r} says that it comes from {update.client!r}")
    if update.round != round:
        raise WireError(f"reply of client {client!r} is for round {update.round}, this is round {round}")
    return update


def close_round(state: ServerState, updates: Sequence[Update], agreement: Agreement) -> ServerState:
    """Aggregate, in the order of client ids, whatever order the replies came in."""
    ordered = sorted(updates, key=lambda update: update.client)
    return replace(agreement.method.aggregate(state, ordered), round=state.round + 1)
