"""The server's side of a round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from capfl.errors import WireError
from capfl.maths.products import Products
from capfl.methods.base import Method
from capfl.roles import Agreement, spent_on
from capfl.types import Adapter, ClientId, Evaluation, ServerState, Update, Validation
from capfl.wire import (
    Message,
    advance,
    broadcast,
    decode_evaluation,
    decode_update,
    decode_validation,
    encode_broadcast,
    led,
    relay,
)  # fmt: skip
from capfl.wire.layout import Bools


def start(agreement: Agreement, clients: Sequence[ClientId] = ()) -> ServerState:
    """The state before the first round: clients know version 0.

    Args:
        clients: who will take part, for a method that has different things in mind for them.
    """
    state = replace(agreement.method.init_server(agreement.initial), known=agreement.version_0)
    return agreement.method.enrol(state, clients) if agreement.method.enrol else state


def request(state: ServerState, client: ClientId, agreement: Agreement, again: bool = False) -> Message:
    """What one client is sent at the start of the next round.

    Args:
        again: the client has failed, so nothing is taken for granted about what it knows.
    """
    version = 0 if again else state.versions.get(client, 0)
    message = broadcast(state.told(client), client, version, agreement.template, agreement.version_0)
    if agreement.method.brief:
        message = replace(message, notes=agreement.method.brief(state, client))
    return encode_broadcast(message, agreement.down, agreement.schema, agreement.method.kinds, agreement.always_whole)


def read_update(reply: bytes, client: ClientId, round: int, agreement: Agreement) -> tuple[Update, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts.

    Raises:
        WireError: it does not fit, or belongs to another client or round.
    """
    update, parts = decode_update(reply, agreement.up, agreement.schema, agreement.initial, agreement.method.kinds)
    _check_sender(update, client, round)
    return update, parts


def read_validation(
    reply: bytes, client: ClientId, round: int, agreement: Agreement
) -> tuple[Validation, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts. Raises as ``read_update``."""
    validation, parts = decode_validation(reply, agreement.up, agreement.schema)
    _check_sender(validation, client, round)
    return validation, parts


def read_evaluation(
    reply: bytes, client: ClientId, round: int, agreement: Agreement
) -> tuple[Evaluation, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts. Raises as ``read_update``, and where models are missing."""
    evaluation, parts = decode_evaluation(reply, agreement.up, agreement.schema, agreement.initial)
    _check_sender(evaluation, client, round)
    if tuple(evaluation.scores) != agreement.scored:
        said, asked = (", ".join(models) or "nothing" for models in (evaluation.scores, agreement.scored))
        raise WireError(f"client {client!r} scored {said}, and was asked for {asked}: the sites' configs differ")
    return evaluation, parts


def _check_sender(message: Update | Validation | Evaluation, client: ClientId, round: int) -> None:
    if message.client != client:
        raise WireError(f"reply of client {client!r} says that it comes from {message.client!r}")
    if message.round != round:
        raise WireError(f"reply of client {client!r} is for round {message.round}, this is round {round}")


def close_round(
    state: ServerState, asked: Sequence[ClientId], updates: Iterable[Update], agreement: Agreement
) -> tuple[ServerState, float | None]:
    """Aggregate, and make the versions that clients will be told. Updates come one by one, by client id.

    Returns:
        The new state, and the relative error of what an inexact method aggregates (``maths.products``).
    """
    method = agreement.method
    inexact = method.exact is False
    parts: list[tuple[Adapter, float]] = []
    bodies: list[tuple[int, bytes]] = []
    versions = {client: version for client, version in state.versions.items() if client not in asked}

    def heard() -> Iterator[Update]:
        for update in updates:
            versions[update.client] = state.round
            if inexact:
                parts.append(method.reached(state, update))
            if method.relay:
                bodies.append((update.n_train, update.body))
            yield update

    new = method.aggregate(state, heard())
    error = Products(parts).error(new.adapter) if inexact else None
    for client in list(versions):  # a group that was split off this round has the log of what it was split off from
        if new.told(client).log is not state.told(client).log:
            del versions[client]
    groups = {name: _next(group, state, agreement, _ranks(group, method)) for name, group in new.groups.items()}
    new = replace(new, round=state.round + 1)
    whole = led(new, new.adapter, relay.pack(bodies)) if method.relay else _next(new, state, agreement)
    return replace(whole, versions=versions, groups=groups), error


def _ranks(group: ServerState, method: Method) -> Bools | None:
    """Which ranks the clients of a group have, if it has been noted."""
    alive = method.sends(group.notes) if group.notes else None
    return None if alive is None else alive.numpy()


def _next(new: ServerState, old: ServerState, agreement: Agreement, alive: Bools | None = None) -> ServerState:
    """The state, or a group of it, with its next version: of the elements that ``old`` told clients to send."""
    new = replace(new, round=old.round + 1)
    importance = spent_on(old.notes, agreement.method).get("importance")
    target = agreement.method.broadcast(new)
    return advance(new, target, agreement.down, agreement.initial, importance, alive)
