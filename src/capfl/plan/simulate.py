"""Rounds of clients whose training is a draw of normal numbers: their messages are real, what they learnt is not.

Here every trained element changes by a normal number of standard deviation ``CHANGE``. What a message costs hardly
depends on it: how many elements are sent is set by the config, positions cost what their number costs, and only the
levels of 8bit to 2bit follow the values' distribution.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

import torch

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.methods.combine import WeightedMean
from capfl.methods.peers import Description
from capfl.model.features import PATTERNS
from capfl.rng import derive
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import LocalTrainer, train
from capfl.round import run_round
from capfl.types import (
    EVERYBODY,
    Adapter,
    Broadcast,
    ClientId,
    ClientState,
    Group,
    Kind,
    Penalty,
    Request,
    ServerState,
    Trained,
)  # fmt: skip
from capfl.wire import Message, decode_update, encode_broadcast, relay
from capfl.wire.sections import HEAD

CHANGE = 1e-3

Parts = Mapping[str, int]


class Simulation:
    """Rounds of some clients. ``messages`` and ``parts`` are those of the last round, by client.

    Args:
        everybody: who would take part in a run: the server may tell each of them something else.
        clients: those who take part here, in every round.
        hidden: width of the model's hidden states, of which clients may describe their data.
    """

    def __init__(
        self, agreement: Agreement, everybody: Sequence[ClientId], clients: Sequence[ClientId], hidden: int = 64
    ) -> None:
        self.agreement = agreement
        self.state: ServerState = agreement.method.start(agreement.initial, everybody)
        self.messages: dict[ClientId, tuple[bytes, bytes]] = {}
        self.parts: dict[ClientId, dict[str, Parts]] = {}
        self._clients = sorted(clients)
        self._memory = {client: ClientState(client) for client in clients}
        self._training = 0.0
        self._hidden = hidden

    def round(self) -> float:
        """One round with all clients. Returns the seconds that a visit took, without training."""
        began, self._training = time.perf_counter(), 0.0
        everybody = FederationConfig(fraction=1.0)
        self.state, record = run_round(
            self.state, self._clients, self.agreement, self._exchange, everybody, self.agreement.seed
        )
        self.parts = {client: {} for client in self._clients}
        for entry in record.ledger:
            self.parts[entry.client][entry.direction] = entry.parts
        return (time.perf_counter() - began - self._training) / len(self._clients)

    def bytes_down(self, client: ClientId, missed: int) -> int:
        """What the client would be sent in the next round if it had missed so many versions."""
        state = replace(self.state, versions={client: self.state.round - missed})
        return len(server.request(state, client, self.agreement).blob)

    def whole(self, client: ClientId) -> int:
        """Bytes of a broadcast to a client that knows nothing, after every element has changed."""
        known = {name: t + 1 for name, t in self.agreement.version_0.items()}
        state = replace(self.state, groups={EVERYBODY: Group(known, known)}, versions={}, group_of={})
        return len(server.request(state, client, self.agreement).blob)

    @property
    def log(self) -> int:
        """Bytes of the differences that the server keeps."""
        return sum(len(body) for group in self.state.groups.values() for body in group.log)

    def _exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes]]:
        for client in clients:
            asked = request(client)
            trainer = LocalTrainer(client, 1, partial(self._train, client), partial(self._described, client))
            replied, self._memory[client] = train(asked, self._memory[client], trainer, self.agreement)
            self.messages[client] = asked, replied
            yield client, replied

    def _train(self, client: ClientId, start: Adapter, round: int, first_step: int, penalty: Penalty | None) -> Trained:
        began = time.perf_counter()
        method, seed = self.agreement.method, self.agreement.seed
        generator = torch.Generator().manual_seed(derive(seed, "plan", client, round) % 2**63)

        def change(t: torch.Tensor) -> torch.Tensor:
            drawn = torch.randn(t.shape, generator=generator)
            return CHANGE * drawn.abs().clamp(min=1e-3).copysign(drawn)  # no element stays as it was

        trained = {name: t + change(t) if method.factors.trains(round, name) else t for name, t in start.items()}
        self._training += time.perf_counter() - began
        n = sum(algebra.ranks(trained).values())
        return Trained(trained, (0.0,), torch.rand(n, generator=generator))

    def _described(self, client: ClientId) -> Description:
        generator = torch.Generator().manual_seed(derive(self.agreement.seed, "plan", client) % 2**63)
        return Description(
            torch.randn((1 + PATTERNS) * self._hidden, generator=generator),
            1 + torch.rand(self._hidden, generator=generator),
            torch.ones(1),
        )


class RelayedSimulation(Simulation):
    """Of a method that relays: a difference has the updates of as many clients as a round has, drawn from those here.

    No base is patched, which would take as much memory as the weights, and no time is counted for it: ``agreement`` is
    what ``unpatched`` makes of the real one.
    """

    def __init__(
        self,
        agreement: Agreement,
        everybody: Sequence[ClientId],
        clients: Sequence[ClientId],
        hidden: int = 64,
        visits: int = 1,
    ) -> None:
        super().__init__(agreement, everybody, clients, hidden)
        self._visits = visits
        self._relayed: list[bytes] = []
        template = agreement.initial | algebra.blank(agreement.initial)
        self._elements = 4 * algebra.size(template)  # in bytes
        self._beside = bytes(2 * HEAD + (len(template) + 7) // 8)  # of a body with all of them: NAMES, and a length

    def round(self) -> float:
        down = {client: self._request(client, min(1, self.state.round)).parts for client in self._clients}
        seconds = super().round()
        for client in self._clients:
            self.parts[client]["down"] = down[client]
        agreed = self.agreement
        began = time.perf_counter()
        updates = [
            decode_update(self.messages[client][1], agreed.up, agreed.schema, agreed.initial)[0]
            for client in self._clients
        ]
        decoding = (time.perf_counter() - began) / len(updates)
        self._relayed.append(relay((u.n_train, u.body) for u in islice(cycle(updates), self._visits)))
        return seconds + self._visits * decoding

    def bytes_down(self, client: ClientId, missed: int) -> int:
        """As the server decides: relayed updates, or the whole adapter where that is shorter."""
        relayed, whole = len(self._request(client, missed).blob), self.whole(client)
        return relayed if missed < 2 else min(relayed, whole)

    def whole(self, client: ClientId) -> int:
        """The elements are counted: there is no patch here that could be encoded."""
        message = Broadcast(self.state.round + 1, client, self._beside, ())
        return len(self._encoded(message).blob) + self._elements

    @property
    def log(self) -> int:
        return sum(map(len, self._relayed))

    def _request(self, client: ClientId, missed: int) -> Message:
        differences = tuple(self._relayed[len(self._relayed) - missed :])
        return self._encoded(Broadcast(self.state.round + 1, client, None, differences))

    def _encoded(self, message: Broadcast) -> Message:
        return encode_broadcast(message, self.agreement.down, self.agreement.schema, always_whole=False)


def unpatched(agreement: Agreement) -> Agreement:
    """Of a method that relays: the same for one that sends up what it does, and does not change the base."""
    return replace(agreement, method=replace(agreement.method, combine=WeightedMean()))
