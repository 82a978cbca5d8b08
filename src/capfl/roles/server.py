"""The server's side of a round."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low

import numpy as np

from capfl.errors import WireError
from capfl.methods.combine import Fold
from capfl.roles.agreement import Agreement
from capfl.types import (
    EVERYBODY,
    Broadcast,
    ClientId,
    Evaluation,
    Group,
    Introduction,
    Offer,
    ServerState,
    Update,
    Validation,
)  # fmt: skip
from capfl.wire import (
    Message,
    advance,
    broadcast,
    decode_evaluation,
    decode_introduction,
    decode_update,
    decode_validation,
    encode_broadcast,
    relay,
    with_version,
)  # fmt: skip
from capfl.wire.scales import Doubles
from capfl.wire.summed import Mean


@dataclass(frozen=True)
class Beside:
    """What a request says of secure aggregation: the fields of ``Broadcast``."""

    cohort: tuple[Offer, ...] = ()
    gone: tuple[ClientId, ...] = ()
    shares: tuple[bytes, ...] = ()


def request(
    state: ServerState, client: ClientId, agreement: Agreement, again: bool = False, beside: Beside | None = None
) -> Message:
    """What one client is sent in the next round.

    Args:
        again: the client has failed, so nothing is taken for granted about what it knows.
        beside: what secure aggregation says with it.
    """
    if again:
        state = replace(forgotten(state, {client}), heard={**state.heard, client: 0})
    method = agreement.method
    message = replace(
        broadcast(state, client, agreement.template, agreement.nothing),
        grouping=method.grouping.announce(state, client),
        ranks=method.ranks.announce(state, client),
        **vars(beside or Beside()),
    )
    missed = state.heard.get(client, 0) < state.round and not agreement.always_whole
    return encode_broadcast(message, agreement.down, agreement.schema, missed)


def ask(state: ServerState, client: ClientId, agreement: Agreement, beside: Beside | None = None) -> Message:
    """A request without an adapter, such as for what a client's data are like: it has who is asked, in which round, and
    what secure aggregation says beside it."""
    message = Broadcast(state.round + 1, client, state.version, None, (), **vars(beside or Beside()))
    return encode_broadcast(message, agreement.down, agreement.schema)


MANY = 10  # times the median of the clients' items: nobody counts for more
ENOUGH = 5  # claims, from which on their median is used as updates come; until then updates wait
TELLING = 3  # claims, of which a median tells anything


def most_items(claims: Iterable[int]) -> int | None:
    """The number of training items above which a client's claim counts no more; None: there are too few claims."""
    found = list(claims)
    return MANY * median_low(found) if len(found) >= TELLING else None


class Aggregation:
    """One round's updates, folded turn by turn into the server's next state as they come. The state is not changed.

    A client is weighted by the training items that it says it has, up to ten times what the median client says.

    Attributes:
        state: the server's, after the turns so far.
        capped: clients that say more, and the items that count of them.
    """

    def __init__(self, state: ServerState, agreement: Agreement) -> None:
        self.state, self._agreement = state, agreement
        self._claims = dict(state.claims)
        self._updates: dict[ClientId, Update] = {}
        self._said: list[tuple[int, Doubles]] = []  # of their ranks, in the mean of so many clients
        self._told = agreement.method.ranks.importance(state.ranks)  # what clients are told in this round
        self.capped: dict[ClientId, int] = {}
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._folds: dict[str, Fold] = {}  # of the groups in which somebody has trained, as all below
        self._bodies: dict[str, list[tuple[int, bytes]]] = {}
        self._turn: list[ClientId] = []
        self._waiting: list[Update] = []

    def add(self, update: Update) -> None:
        """Take an update of this turn, into the adapter of everybody and into that of its client's group."""
        self._claims[update.client] = update.n_train
        self._waiting.append(update)
        if len(self._claims) >= ENOUGH:
            self._fold()

    def add_mean(self, group: str, clients: Sequence[ClientId], mean: Mean) -> None:
        """Take the mean of some clients of a group, in which they count alike."""
        start = self._agreement.method.combine.start
        for name in dict.fromkeys((EVERYBODY, group)):
            if name not in self._folds:
                self._folds[name] = start(self.state.groups[name].adapter, self.state.round + 1)
            self._folds[name].add(mean.change, len(clients))
        self._said.append((len(clients), mean.ranks))
        self._turn += clients

    def add_silent(self, client: ClientId) -> None:
        """Note that a client has trained which says no more than that."""
        self._turn.append(client)

    def _fold(self) -> None:
        state, method = self.state, self._agreement.method
        most = most_items(self._claims.values())
        for update in self._waiting:
            if most is not None and update.n_train > most:
                update = replace(update, n_train=most)
                self.capped[update.client] = most
            importance = method.ranks.of_client(state, update.client)
            ranks = None if importance is None else importance > 0
            for name in dict.fromkeys((EVERYBODY, state.group_name(update.client))):
                if name not in self._folds:
                    self._folds[name] = method.combine.start(state.groups[name].adapter, state.round + 1)
                self._folds[name].add(update.adapter, update.n_train, ranks)
                self._keep_body(name, update)
            self._turn.append(update.client)
            self._updates[update.client] = replace(update, adapter={}, body=b"")
        self._waiting = []

    def _keep_body(self, group: str, update: Update) -> None:
        """Keep what may be relayed: all updates, or the only one of a group in this turn."""
        bodies, combine = self._bodies.setdefault(group, []), self._agreement.method.combine
        if combine.relays or (combine.passes_one and len(bodies) < 2):
            bodies.append((update.n_train, update.body))

    def end_turn(self, asked: Collection[ClientId]) -> None:
        """End the turn, after everybody's answer or failure: every group gets its next version."""
        self._fold()
        old, number = forgotten(self.state, asked), self.state.version + 1
        groups = {name: self._next(name, group, number) for name, group in old.groups.items()}
        alone = {client: number for client in self._turn if self._relays_one(old.group_name(client))}
        self.state = replace(
            old,
            groups=groups,
            version=number,
            versions={**old.versions, **dict.fromkeys(self._turn, old.version)},
            own={**old.own, **alone},
            heard={**old.heard, **dict.fromkeys(self._turn, old.round + 1)},
            visits={**old.visits, **{client: old.visits.get(client, 0) + 1 for client in self._turn}},
            claims=dict(self._claims),  # the next turn adds its own
        )
        self._begin_turn()

    def _relays_one(self, group: str) -> bool:
        """Is the group's next version what its only update of this turn leads to?"""
        combine = self._agreement.method.combine
        return len(self._bodies.get(group, ())) == 1 and combine.passes_one and not self._agreement.down.exact

    def _next(self, name: str, group: Group, number: int) -> Group:
        """A group with its next version: relayed as it came where it can be, or encoded."""
        agreed, bodies = self._agreement, self._bodies.get(name, [])
        method = agreed.method
        if name in self._folds:
            group = replace(group, adapter=self._folds[name].value())
        target = method.factors.travelling(group.adapter)
        if method.combine.relays and bodies:
            return with_version(group, target, relay(bodies), agreed.nothing)
        if self._relays_one(name):
            body = relay(bodies)
            known = agreed.next_version(group.known, body, number)
            if agreed.down.scales:  # nothing is carried over: the two are the same, and in memory and on disk once
                group = replace(group, adapter=group.adapter | known)
            return with_version(group, known, body, agreed.nothing)
        return advance(group, target, number, agreed.down, agreed.initial, self._told)

    def value(self) -> ServerState:
        """The state after the round's last turn."""
        state = replace(self.state, round=self.state.round + 1)
        ranks, n = self._agreement.method.ranks, sum(clients for clients, _ in self._said)
        if n:
            mean = sum((clients / n * said for clients, said in self._said), np.zeros(1))
            return replace(state, ranks=ranks.combine_mean(state, mean))
        return replace(state, ranks=ranks.combine(state, self._updates))


def introduced(state: ServerState, introductions: Mapping[ClientId, Introduction], agreement: Agreement) -> ServerState:
    """The state with clients that have said what their data are like, in the groups that this leads to.

    A group begins as that of everybody. A client that has been placed in one that there was before, or has left its
    own, knows no version of the group's adapter.
    """
    new = agreement.method.grouping.form(state, introductions)
    moved = {client for client, group in new.group_of.items() if group != state.group_of.get(client)}
    lost = {client for client in moved if new.group_of[client] in state.groups or client in state.group_of}
    return forgotten(new, lost)


def forgotten(state: ServerState, clients: Collection[ClientId]) -> ServerState:
    """The state in which nothing is taken for granted about the versions that some clients know."""
    versions, own = (
        {client: version for client, version in known.items() if client not in clients}
        for known in (state.versions, state.own)
    )
    return replace(state, versions=versions, own=own)


# -- replies ---------------------------------------------------------------------------------------------


def read_introduction(
    reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
) -> tuple[Introduction, dict[str, int]]:
    """Decode one reply to a request of the round that follows ``state``, and count the bytes of its parts.

    Whose it is, and of which round, ``Talk`` checks of every reply. Raises WireError: it does not fit.
    """
    return decode_introduction(reply, agreement.up, agreement.schema, agreement.records_up)


def read_update(
    reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
) -> tuple[Update, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts. Raises as ``read_introduction``."""
    number = state.version + 1
    return decode_update(reply, agreement.up, agreement.schema, agreement.initial, number, agreement.records_up)


def read_validation(
    reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
) -> tuple[Validation, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts. Raises as ``read_introduction``."""
    return decode_validation(reply, agreement.up, agreement.schema)


def read_evaluation(
    reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
) -> tuple[Evaluation, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts.

    Raises as ``read_introduction``, and where models are missing.
    """
    evaluation, parts = decode_evaluation(reply, agreement.up, agreement.schema, agreement.initial, agreement.metrics)
    if tuple(evaluation.scores) != agreement.scored:
        said, asked = (", ".join(models) or "nothing" for models in (evaluation.scores, agreement.scored))
        raise WireError(f"client {client!r} scored {said}, and was asked for {asked}: the sites' configs differ")
    return evaluation, parts
