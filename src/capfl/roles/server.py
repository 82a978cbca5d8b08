"""The server's side of a round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from capfl.errors import WireError
from capfl.roles import Agreement
from capfl.types import Broadcast, ClientId, ServerState, Update
from capfl.wire import decode_update, encode_broadcast


def request(state: ServerState, client: ClientId, agreement: Agreement) -> bytes:
    """What one client is sent at the start of the next round."""
    message = Broadcast(state.round + 1, client, agreement.method.broadcast(state, client))
    return encode_broadcast(message, agreement.codec, agreement.initial)


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


def close_round(state: ServerState, updates: Iterable[Update], agreement: Agreement) -> ServerState:
    """Aggregate. Updates come in the order of client ids, and one by one."""
    return replace(agreement.method.aggregate(state, updates), round=state.round + 1)
