"""Bytes of a run before it runs: a few rounds of messages of the real shapes, and then arithmetic.

The messages go through the code that real rounds go through, but nobody trains: every trained element changes by a
normal number. What a message costs hardly depends on it, because the config sets how many elements are sent; only the
levels of 8bit to 2bit follow the values' distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.methods.combine import WeightedMean
from capfl.methods.peers import Description
from capfl.model.features import PATTERNS
from capfl.rng import derive
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import ANSWERS, LocalTrainer
from capfl.round import run_round, sample
from capfl.types import (
    EVERYBODY,
    Adapter,
    ClientId,
    ClientState,
    Group,
    Kind,
    Penalty,
    Request,
    Trained,
)  # fmt: skip
from capfl.wire import decode_update, relay
from capfl.wire.sections import HEAD, parts

CLIENTS = 3  # simulated: those whose messages are counted, and others that their changes are averaged with
ROUNDS = 3  # simulated; the last two stand in turn for all that follow
CHANGE = 1e-3  # standard deviation of what "training" changes

Parts = Mapping[str, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Traffic:
    """Bytes of the messages of one client.

    Attributes:
        up: its update in round 1, 2, ..., by part.
        down: its request after 0, 1, ... rounds, by part, if it took part in the round before.
        late: what the newest difference after 0, 1, ... rounds adds to the request of a client that missed it.
        whole: a request with the whole adapter.
    """

    up: Sequence[Parts]
    down: Sequence[Parts]
    late: Sequence[int]
    whole: int

    def bytes_up(self, round: int) -> int:
        """The client's update in a round (1, 2, ...)."""
        return sum(_at(self.up, round - 1).values())

    def bytes_down(self, after: int, version: int) -> int:
        """The request after a number of rounds, to a client that knows a version."""
        newest = sum(_at(self.down, after).values())
        if version >= after - 1:
            return newest
        return min(newest + sum(_at(self.late, number) for number in range(version + 1, after)), self.whole)


def _at(values: Sequence[T], number: int) -> T:
    """The value of a round. Beyond those that there are the last two take turns: some methods train A and B in turn."""
    beyond = number - (len(values) - 1)
    return values[number] if beyond <= 0 else values[-1 - beyond % 2]


def measure(
    agreement: Agreement, clients: Sequence[ClientId], visits: int, hidden: int = 64
) -> dict[ClientId, Traffic]:
    """The traffic of every client. Those with the same ranks share one, for theirs differs by the length of ids alone.

    Args:
        clients: all that take part in the run.
        visits: clients in a round, whose updates all go down if the method relays them.
        hidden: width of the model's hidden states, of which clients may describe their data.
    """
    relays, patch = agreement.method.combine.relays, 0
    if relays:  # the patch of the base is as large as its weights, and its size is all that matters here
        patch = sum(4 * up.shape[0] * down.shape[1] for _, down, up in algebra.factors(agreement.initial))
        agreement = replace(agreement, method=replace(agreement.method, combine=WeightedMean()))
    state = agreement.method.start(agreement.initial, clients)
    alike: dict[str, list[ClientId]] = {}
    for client in clients:
        ranks = agreement.method.ranks.of_client(state, client)
        alike.setdefault("" if ranks is None else str(ranks.tolist()), []).append(client)
    measured = [members[0] for members in alike.values()]
    others = [client for client in clients if client not in measured]
    simulated = [*measured, *others[: max(0, CLIENTS - len(measured))]]
    memory = {client: ClientState(client) for client in simulated}
    replies: dict[ClientId, bytes] = {}

    def exchange(
        kind: Kind, round: int, asked: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes]]:
        for client in asked:
            trainer = LocalTrainer(client, 1, partial(_trained, agreement, client), partial(_described, client, hidden))
            replies[client], memory[client] = ANSWERS[kind](request(client), memory[client], trainer, agreement)
            yield client, replies[client]

    up: dict[ClientId, list[Parts]] = {client: [] for client in measured}
    down: dict[ClientId, list[Parts]] = {c: [server.request(state, c, agreement).parts] for c in measured}
    late: dict[ClientId, list[int]] = {client: [0] for client in measured}
    for _ in range(ROUNDS):
        state, record = run_round(state, simulated, agreement, exchange, FederationConfig(), agreement.seed)
        sent = {entry.client: entry.parts for entry in record.ledger if entry.direction == "up"}
        for client in measured:
            up[client].append(sent[client])
            if relays:
                relayed = _relayed(replies[client], agreement, visits, state.version)
                down[client].append({part: n + relayed.get(part, 0) for part, n in down[client][0].items()})
                late[client].append(sum(relayed.values()))
            else:
                down[client].append(server.request(state, client, agreement).parts)
                late[client].append(sum(HEAD + len(body) for body in state.group(client).log[-1:]))
    changed = {name: t + 1 for name, t in agreement.version_0.items()}
    last = replace(state, groups={EVERYBODY: Group(changed, changed)}, group_of={}, versions={})
    found = [
        Traffic(up[client], down[client], late[client], len(server.request(last, client, agreement).blob) + patch)
        for client in measured
    ]
    return {client: traffic for traffic, members in zip(found, alike.values(), strict=True) for client in members}


def _relayed(reply: bytes, agreement: Agreement, visits: int, number: int) -> Parts:
    """Of a difference that has a round's updates, by part: as many as this one as there are visits."""
    update, _ = decode_update(reply, agreement.up, agreement.schema, agreement.initial, number, agreement.records_up)
    one = parts(relay([(1, update.body)]))
    return {part: visits * n + (HEAD if part == "header" else 0) for part, n in one.items()}


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
    generator = torch.Generator().manual_seed(derive(0, "plan", client) % 2**63)
    features = torch.randn((1 + PATTERNS) * hidden, generator=generator)
    return Description(features, 1 + torch.rand(hidden, generator=generator), torch.ones(1))


def totals(traffic: Mapping[ClientId, Traffic], config: FederationConfig, seed: int) -> dict[str, int]:
    """Bytes of a whole run, all clients together; ``bytes_down`` has the final delivery, ``bytes_up`` updates alone.

    Who takes part in which round is what the run itself will draw.
    """
    up = down = 0
    version = dict.fromkeys(traffic, 0)
    for round in range(1, config.rounds + 1):
        for client in sample(list(traffic), config.fraction, seed, round):
            up += traffic[client].bytes_up(round)
            down += traffic[client].bytes_down(round - 1, version[client])
            version[client] = round - 1
    delivery = sum(own.bytes_down(config.rounds, version[client]) for client, own in traffic.items())
    down += delivery
    return {"bytes_up": up, "bytes_down": down, "bytes": up + down, "final_delivery": delivery}
