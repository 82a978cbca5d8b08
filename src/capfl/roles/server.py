"""The server's side of a round."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median_low

from capfl.errors import WireError
from capfl.roles.agreement import Agreement
from capfl.types import EVERYBODY, ClientId, Evaluation, ServerState, Update, Validation
from capfl.wire import (
    Message,
    advance,
    broadcast,
    decode_evaluation,
    decode_update,
    decode_validation,
    encode_broadcast,
    relay,
    with_version,
)  # fmt: skip


def request(state: ServerState, client: ClientId, agreement: Agreement, again: bool = False) -> Message:
    """What one client is sent at the start of the next round.

    Args:
        again: the client has failed, so nothing is taken for granted about what it knows.
    """
    if again:
        state = replace(state, versions={**state.versions, client: 0})
    group, version = state.group(client), state.versions.get(client, 0)
    message = broadcast(group, state.round, client, version, agreement.template)
    method = agreement.method
    message = replace(
        message, grouping=method.grouping.announce(state, client), ranks=method.ranks.announce(state, client)
    )
    return encode_broadcast(message, agreement.down, agreement.schema, agreement.always_whole)


MANY = 10  # times the median of the clients' items: nobody counts for more
ENOUGH = 5  # claims, from which on their median is used as updates come; until then updates wait
TELLING = 3  # claims, of which a median tells anything


def most_items(claims: Iterable[int]) -> int | None:
    """The number of training items above which a client's claim counts no more; None: there are too few claims."""
    found = list(claims)
    return MANY * median_low(found) if len(found) >= TELLING else None


class Aggregation:
    """One round's updates, folded into the server's next state as they come, by client id. ``state`` is not changed.

    A client is weighted by the training items that it says it has, up to ten times what the median client says.

    Attributes:
        capped: clients that say more, and the items that count of them.
    """

    def __init__(self, state: ServerState, agreement: Agreement) -> None:
        self._state, self._agreement = state, agreement
        combine = agreement.method.combine
        self._folds = {name: combine.start(group.adapter, state.round + 1) for name, group in state.groups.items()}
        self._claims = dict(state.claims)
        self._waiting: list[Update] = []
        self._updates: dict[ClientId, Update] = {}
        self._bodies: list[tuple[int, bytes]] = []
        self.capped: dict[ClientId, int] = {}

    def add(self, update: Update) -> None:
        """Take an update, into the adapter of everybody and into that of its client's group."""
        self._claims[update.client] = update.n_train
        self._waiting.append(update)
        if len(self._claims) >= ENOUGH:
            self._fold()

    def _fold(self) -> None:
        state, method = self._state, self._agreement.method
        most = most_items(self._claims.values())
        for update in self._waiting:
            if most is not None and update.n_train > most:
                update = replace(update, n_train=most)
                self.capped[update.client] = most
            importance = method.ranks.of_client(state, update.client)
            ranks = None if importance is None else importance > 0
            for name in dict.fromkeys((EVERYBODY, state.group_of.get(update.client, EVERYBODY))):
                self._folds[name].add(update.adapter, update.n_train, ranks)
            if method.combine.relays:
                self._bodies.append((update.n_train, update.body))
            self._updates[update.client] = replace(update, adapter={}, body=b"")
        self._waiting = []

    def value(self, asked: Sequence[ClientId]) -> ServerState:
        """The state after the round, in which ``asked`` were sent a broadcast."""
        self._fold()
        old, method = self._state, self._agreement.method
        known = {client: version for client, version in old.versions.items() if client not in asked}
        known |= dict.fromkeys(self._updates, old.round)
        state = replace(
            old,
            round=old.round + 1,
            groups={name: replace(group, adapter=self._folds[name].value()) for name, group in old.groups.items()},
            versions=known,
            visits={**old.visits, **{client: old.visits.get(client, 0) + 1 for client in self._updates}},
            claims=self._claims,
        )
        state = replace(state, ranks=method.ranks.combine(state, self._updates))
        state = method.grouping.form(state, self._updates)
        return self._with_versions(_without_lost_versions(state, old))

    def _with_versions(self, state: ServerState) -> ServerState:
        """The state with the version of every group that clients will be sent."""
        agreed, old = self._agreement, self._state
        if agreed.method.combine.relays:
            body = relay(self._bodies)
            groups = {name: with_version(group, group.adapter, body) for name, group in state.groups.items()}
            return replace(state, groups=groups)
        importance = agreed.method.ranks.importance(old.ranks)  # by what clients were told this round
        groups = {
            name: advance(
                group, agreed.method.factors.travelling(group.adapter), state.round, agreed.down, agreed.initial,
                importance,
            )
            for name, group in state.groups.items()
        }  # fmt: skip
        return replace(state, groups=groups)


def _without_lost_versions(state: ServerState, old: ServerState) -> ServerState:
    """A client that has been placed in a group that there was before knows no version of that group's adapter."""
    moved = {
        client for client, group in state.group_of.items() if group != old.group_of.get(client) and group in old.groups
    }
    return replace(state, versions={client: v for client, v in state.versions.items() if client not in moved})


# -- replies ---------------------------------------------------------------------------------------------


def read_update(reply: bytes, client: ClientId, round: int, agreement: Agreement) -> tuple[Update, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts.

    Raises:
        WireError: it does not fit, or belongs to another client or round.
    """
    update, parts = decode_update(reply, agreement.up, agreement.schema, agreement.initial, agreement.records_up)
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
