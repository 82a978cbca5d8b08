"""Bytes of a run before it runs: a few rounds of messages of the real shapes, and then the run's own bookkeeping.

The messages go through the code that real rounds go through, but nobody trains: every trained element changes by a
normal number. What a message costs hardly depends on it, because the config sets how many elements are sent; only the
levels of 8bit to 2bit follow the values' distribution. Of a large adapter a few modules stand for all (``scaled``).
Then every request is charged for the versions that its client has missed since its last turn. Where clients say what
their data are like, all are taken to be alike: most goes down in a group of all of them. Groups that the operator gives
are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, TypeVar

import numpy as np
import torch

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.methods.combine import WeightedMean
from capfl.methods.given import GivenPeers
from capfl.methods.order import Order
from capfl.methods.peers import Description
from capfl.model.features import PATTERNS
from capfl.plan.messages import PARTS, Client, Measured, Parts, counted
from capfl.plan.scaled import scaled
from capfl.plan.secure import SecureMessages
from capfl.rng import derive
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import ANSWERS, LocalTrainer
from capfl.round import introduce, run_round, sample
from capfl.types import (
    EVERYBODY,
    Adapter,
    ClientId,
    ClientState,
    Entry,
    Kind,
    Penalty,
    Request,
    ServerState,
    Trained,
)  # fmt: skip
from capfl.wire import decode_update, differences, relay
from capfl.wire.downlink import WHOLE
from capfl.wire.sections import HEAD, parts

CLIENTS = 3  # simulated: those whose messages are counted, and others that their changes are averaged with
ROUNDS = 3  # simulated; the last two stand in turn for all that follow
CHANGE = 1e-3  # standard deviation of what "training" changes
ITEMS = 100  # that a simulated client says it has
T = TypeVar("T")


@dataclass(frozen=True)
class Charge:
    """One message. ``kind`` is that of the request, or "deliver" for the final delivery, whose replies are not here."""

    kind: Literal["introduce", "keys", "train", "deliver"]
    round: int
    direction: Literal["up", "down"]
    parts: Parts


@dataclass(frozen=True)
class Traffic:
    """What messages of a run are made of.

    Attributes:
        clients: their messages.
        group_of: the groups of clients that are in another one than that of everybody.
        together: the difference in round 1, 2, ... that a mean of updates leads to.
        whole: the whole adapter.
        limit: bytes of the differences that the server keeps.
        secure: the messages of secure aggregation, in place of updates and beside requests; None: there is none.
    """

    agreement: Agreement
    clients: Mapping[ClientId, Client]
    group_of: Mapping[ClientId, str]
    together: Sequence[Parts]
    whole: Parts
    limit: int
    secure: SecureMessages | None = None

    @cached_property
    def nothing(self) -> Parts:
        """The difference of a turn in which nobody of a group has said anything."""
        return counted(parts(self.agreement.nothing), HEAD)

    def turns(self, chosen: Sequence[ClientId], seed: int, round: int) -> list[list[ClientId]]:
        """The clients of each turn of a round."""
        return self.agreement.method.order.of_round(chosen, self.group_of, seed, round)

    def groups(self, clients: Iterable[ClientId]) -> dict[str, list[ClientId]]:
        """Some clients by group."""
        found: dict[str, list[ClientId]] = {}
        for client in clients:
            found.setdefault(self.group_of.get(client, EVERYBODY), []).append(client)
        return found

    def charges(self, rounds: Iterable[Sequence[Sequence[ClientId]]]) -> Iterator[Charge]:
        """Every message of a run with such turns in its rounds, and then the final delivery to all clients."""
        versions = {name: _Versions(self) for name in self.groups(self.clients)}
        of_client = {client: versions[self.group_of.get(client, EVERYBODY)] for client in self.clients}
        asked, round = set[ClientId](), 0
        for round, turns in enumerate(rounds, 1):
            for client in sorted({client for turn in turns for client in turn} - asked):
                for direction, met in zip(("down", "up"), self.clients[client].met, strict=False):
                    yield Charge("introduce", round, "down" if direction == "down" else "up", met)
            for turn in turns:
                members = self.groups(turn)
                for group in members.values():
                    yield from self._secured("keys", round, group)
                    for client in group:
                        of = self.clients[client]
                        request = of.later if client in asked else of.first
                        request = request + self._more(group) + of_client[client].missed_by(client)
                        yield Charge("train", round, "down", request)
                        yield Charge("train", round, "up", self._update(client, round, len(group)))
                for name, own in versions.items():
                    own.end(members.get(name, []), round)
                asked |= set(turn)
        everybody = list(self.clients)
        for charge in self._secured("deliver", round + 1, everybody):  # scores are summed as well
            if charge.direction == "down":
                yield charge
        more = self.secure.more(everybody) if self.secure else counted({})
        for client, of in self.clients.items():
            request = of.later if client in asked else of.stranger
            yield Charge("deliver", round + 1, "down", request + more + of_client[client].missed_by(client))

    def _secured(self, kind: Literal["keys", "deliver"], round: int, group: Sequence[ClientId]) -> Iterator[Charge]:
        """The messages of secure aggregation beside the request whose answers are summed."""
        if self.secure and not (kind == "keys" and self.is_silent(group[0])):
            for down, up in (pair for client in group for pair in self.secure.beside(group, client)):
                yield Charge(kind, round, "down", down)
                yield Charge(kind, round, "up", up)

    def _more(self, group: Sequence[ClientId]) -> Parts:
        """What a request to train has more with secure aggregation."""
        return self.secure.more(group) if self.secure and not self.is_silent(group[0]) else counted({})

    def is_silent(self, client: ClientId) -> bool:
        """Does the client say nothing of what it has learnt?"""
        return self.secure is not None and self.agreement.method.says_nothing(client)

    def _update(self, client: ClientId, round: int, clients: int) -> Parts:
        """An update, of a sum with so many clients where there are sums."""
        if self.secure is None:
            return _at(self.clients[client].up, round)
        if self.is_silent(client):
            return self.secure.done(client)
        return self.secure.masked(client, _place(ROUNDS, round), clients)


class _Versions:
    """The differences that a server keeps, and what it knows of its clients: as ``server.Aggregation``."""

    def __init__(self, traffic: Traffic) -> None:
        self._of, self._combine = traffic, traffic.agreement.method.combine
        self._until = [counted({})]  # the sum of all differences up to version 0, 1, ...
        self._log: list[int] = []  # lengths of those that are kept
        self._known: dict[ClientId, int] = {}
        self._own: dict[ClientId, int] = {}

    def missed_by(self, client: ClientId) -> Parts:
        """What brings a client to the newest version."""
        known, newest = self._known.get(client, 0), len(self._until) - 1
        if newest - known > len(self._log):
            return self._of.whole
        first = known
        if self._own.get(client) == known + 1:  # its own difference is sent as a section of nothing
            first = known + 1
        return self._until[newest] - self._until[first] + counted({}, HEAD * (first - known))

    def end(self, turn: Sequence[ClientId], round: int) -> None:
        """The next version, after the updates of a turn."""
        number, down = len(self._until), self._of.agreement.down
        relayed = [_at(self._of.clients[client].alone, round) for client in turn]
        passed_on = len(turn) == 1 and self._combine.passes_one and not down.exact
        difference = _at(self._of.together, round)
        if not turn or self._of.is_silent(turn[0]):
            difference = self._of.nothing
        elif passed_on:
            difference = relayed[0]
        elif self._combine.relays:  # one section of all of them
            difference = sum(relayed, counted({})) - counted({}, HEAD * (len(turn) - 1))
        self._until.append(self._until[-1] + difference)
        self._log = [] if self._of.agreement.always_whole else [*self._log, int(difference.sum()) - HEAD]
        while len(self._log) > 1 and sum(self._log) > self._of.limit:
            del self._log[0]
        self._known |= dict.fromkeys(turn, number - 1)
        self._own |= dict.fromkeys(turn, number if passed_on else 0)


def _at(values: Sequence[T], round: int) -> T:
    """The value of a round. Beyond those that there are the last two take turns: some methods alternate A and B."""
    return values[_place(len(values), round) - 1]


def _place(known: int, round: int) -> int:
    """The round, of the first that are known, that stands for a round."""
    beyond = round - known
    return round if beyond <= 0 else known - beyond % 2


def measure(agreement: Agreement, clients: Sequence[ClientId], hidden: int = 64) -> Traffic:
    """What the messages of a run are made of. Clients with the same ranks differ by the length of their ids alone.

    Args:
        agreement: of whose initial adapter the shapes count alone.
        clients: all that take part in the run.
        hidden: width of the model's hidden states, of which clients may describe their data.
    """
    initial, run = agreement.initial, replace(agreement, method=replace(agreement.method, order=Order()))
    secure = SecureMessages(agreement) if agreement.secure else None
    if secure:  # all but the updates is as it is without
        run = replace(run, method=replace(run.method, combine=WeightedMean()))
    patch = 0
    given = run.method.start(initial, clients).group_of  # all of one group, so that there is one to be measured
    if given:
        run = replace(run, method=replace(run.method, grouping=GivenPeers(dict.fromkeys(clients, "plan"))))
    if run.method.combine.relays:  # the patch is as large as the base's weights, and only its size matters here
        patch = sum(4 * up.shape[0] * down.shape[1] for _, down, up in algebra.factors(initial))
        run = replace(run, method=replace(run.method, combine=WeightedMean()))
    start = run.method.start(initial, clients)
    alike: dict[bytes, list[ClientId]] = {}
    for client in clients:
        ranks = run.method.ranks.of_client(start, client)
        alike.setdefault(b"" if ranks is None else ranks.numpy().tobytes(), []).append(client)
    found = scaled(run, lambda part: _simulated(part, [members[0] for members in alike.values()], clients, hidden))
    named = {
        client: one.called(len(client.encode()) - len(members[0].encode()))
        for one, members in zip(found.clients, alike.values(), strict=True)
        for client in members
    }
    return Traffic(
        agreement, {client: named[client] for client in clients},
        given or (dict.fromkeys(clients, found.group) if found.group else {}), found.together,
        found.whole + counted({"values": patch}), 4 * algebra.size(run.version_0) + patch, secure,
    )  # fmt: skip


def _simulated(run: Agreement, measured: Sequence[ClientId], clients: Sequence[ClientId], hidden: int) -> Measured:
    """A few rounds of messages of some clients, and of some others beside them."""
    start = run.method.start(run.initial, clients)
    others = [client for client in clients if client not in measured]
    simulated = sorted([*measured, *others[: max(0, CLIENTS - len(measured))]])
    memory = {client: ClientState(client) for client in simulated}
    replies: dict[ClientId, bytes] = {}

    def exchange(
        kind: Kind, round: int, asked: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes]]:
        for client in asked:
            trainer = LocalTrainer(client, ITEMS, partial(_trained, run, client), partial(_described, client, hidden))
            replies[client], memory[client] = ANSWERS[kind](request(client), memory[client], trainer, run)
            yield client, replies[client]

    def beside(state: ServerState) -> dict[ClientId, Parts]:
        """Requests without any difference."""
        state = replace(state, version=0, versions={})
        return {client: counted(server.request(state, client, run).parts) for client in measured}

    config, stranger = FederationConfig(), beside(start)
    state, met = introduce(start, run.method.grouping.unknown(start, simulated), run, exchange, config)
    introductions, first, group = met.ledger, beside(state), state.group_of.get(measured[0])
    up: dict[ClientId, list[Parts]] = {client: [] for client in measured}
    alone: dict[ClientId, list[Parts]] = {client: [] for client in measured}
    together: list[Parts] = []
    for _ in range(ROUNDS):
        number = state.version + 1
        state, record = run_round(state, simulated, run, exchange, config, run.seed)
        for client in measured:
            up[client] += [counted(e.parts) for e in _of(client, record.ledger) if e.direction == "up"]
            update, _ = decode_update(replies[client], run.up, run.schema, run.initial, number, run.records_up)
            alone[client].append(counted(parts(relay([(1, update.body)])), HEAD))
        newest = differences(state.group(measured[0]), 1, run.nothing) or ()
        together.append(counted(parts(b"".join(newest)), HEAD))
    later = beside(state)
    found = [
        Client(
            tuple(counted(e.parts) for e in _of(client, introductions)), first[client], later[client], stranger[client],
            up[client], alone[client],
        )
        for client in measured
    ]  # fmt: skip
    changed = {name: t + 1 for name, t in run.version_0.items()}
    return Measured(found, group, together, counted(parts(WHOLE.encode(changed, run.template, 1)), HEAD))


def _of(client: ClientId, ledger: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in ledger if entry.client == client]


def _trained(
    agreement: Agreement, client: ClientId, start: Adapter, round: int, first_step: int, penalty: Penalty | None
) -> Trained:
    generator = torch.Generator().manual_seed(derive(agreement.seed, "plan", client, round) % 2**63)

    def moved(t: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(t.shape, generator=generator)
        return t + CHANGE * drawn.abs().clamp(min=1e-3).copysign(drawn)  # no element stays as it was

    trains = agreement.method.factors.trains
    adapter = {name: moved(t) if trains(round, name) else t for name, t in start.items()}
    return Trained(adapter, (0.0,), torch.rand(sum(algebra.ranks(adapter).values()), generator=generator))


def _described(client: ClientId, hidden: int) -> Description:
    """Data that are like everybody's: what clients say differs by what chance makes of so many items."""
    alike, own = (
        torch.randn((1 + PATTERNS) * hidden, generator=torch.Generator().manual_seed(derive(0, "plan", name) % 2**63))
        for name in ("", client)
    )
    return Description(alike + own / ITEMS**0.5, torch.ones(hidden), torch.full((1,), 4.0))


def totals(traffic: Traffic, config: FederationConfig, seed: int) -> dict[str, int]:
    """Bytes of a whole run, all clients together; ``bytes_down`` has the final delivery, ``bytes_up`` no scores.

    Who takes part in which round, and in which turn, is what the run itself will draw.
    """
    clients = list(traffic.clients)
    rounds = (
        traffic.turns(sample(clients, config.fraction, seed, round), seed, round)
        for round in range(1, config.rounds + 1)
    )
    up = down = delivery = 0
    for charge in traffic.charges(rounds):
        n = int(charge.parts.sum())
        up += n * (charge.direction == "up")
        down += n * (charge.direction == "down")
        delivery += n * (charge.kind == "deliver")
    return {"bytes_up": up, "bytes_down": down, "bytes": up + down, "final_delivery": delivery}


def settled(traffic: Traffic, visits: int, seed: int) -> dict[str, dict[str, int]]:
    """``up`` and ``down``, bytes by part: of one client in one round, once messages have settled, to and from a client
    that took part in the round before. Means over clients, and over two rounds.

    Args:
        visits: clients in a round.
    """
    chosen = sorted(traffic.clients)[:visits]
    rounds = [traffic.turns(chosen, seed, round) for round in range(1, ROUNDS + 2)]
    charges = [c for c in traffic.charges(rounds) if c.kind in ("keys", "train") and c.round >= ROUNDS]
    n = sum(c.kind == "train" and c.direction == "down" for c in charges)
    down = np.sum([c.parts for c in charges if c.direction == "down"], axis=0) / n
    up = np.mean([n for client in traffic.clients.values() for n in client.up[-2:]], axis=0)
    if traffic.secure:
        up = np.sum([c.parts for c in charges if c.direction == "up"], axis=0) / n
    return {
        way: {part: round(float(n)) for part, n in zip(PARTS, mean, strict=True)}
        for way, mean in (("up", up), ("down", down))
    }
