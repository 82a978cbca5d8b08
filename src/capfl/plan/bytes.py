"""Bytes of a run, measured: rounds of messages of the real shapes, through the code that real rounds go through.

What clients have learnt is not known before they have learnt it. Here every trained element changes by a normal number
of standard deviation ``CHANGE``. What a message costs hardly depends on it: how many elements are sent is set by the
config, positions cost what their number costs, and only the levels of 8bit to 2bit follow the values' distribution.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from capfl import adapter as algebra
from capfl.config.schema import CodecConfig, FederationConfig
from capfl.methods.fedit import fedit
from capfl.model.features import PATTERNS
from capfl.rng import derive
from capfl.roles import Agreement, server
from capfl.roles.client import Site, handle
from capfl.round import run_round, sample
from capfl.types import (
    Adapter,
    ClientId,
    Evaluation,
    HeldOut,
    Kind,
    Notes,
    Penalty,
    Request,
    Score,
    ServerState,
    Trained,
)  # fmt: skip
from capfl.wire import encode_evaluation
from capfl.wire.entropy import bits_down, bits_up

SITES = 4  # simulated clients: one whose messages are measured, and others that its changes are averaged with
SETTLING = 6  # rounds after the warm-up, in which residuals fill; the last one stands for all that follow
CHANGE = 1e-3

Parts = Mapping[str, int]


@dataclass(frozen=True)
class Traffic:
    """The messages of one client, round by round from the first; the last round stands for all after it."""

    client: ClientId
    up: tuple[Parts, ...]
    down: tuple[Parts, ...]
    missed: tuple[tuple[int, ...], ...]  # after each round (0, 1, ...), bytes down to who knows 0, 1, ... versions less
    whole: int  # bytes down with the whole adapter, every element of it
    evaluation: int  # bytes up, of what the client says of its models in the end
    entropy_bound: float  # bytes that the last round's two messages say
    log: int  # bytes of the differences that the server keeps
    seconds: float  # of a visit, without training: encode, decode and aggregate

    def bytes_up(self, round: int, client: ClientId) -> int:
        """Bytes of a client's update in a round (1, 2, ...)."""
        parts = self.up[min(round, len(self.up)) - 1]
        return sum(parts.values()) + self._longer(client)

    def bytes_down(self, after: int, missed: int, client: ClientId) -> int:
        """Bytes down after a number of rounds, to a client that knows ``missed`` versions less than there are."""
        known = self.missed[min(after, len(self.missed) - 1)]
        if missed < len(known):
            return known[missed] + self._longer(client)
        further = known[-1] + (missed - len(known) + 1) * (known[1] - known[0])  # a difference for each round
        return min(further, max(self.whole, known[-1])) + self._longer(client)

    def bytes_evaluation(self, client: ClientId) -> int:
        """Bytes of what a client says in the end."""
        return self.evaluation + self._longer(client)

    def _longer(self, client: ClientId) -> int:
        return len(client.encode()) - len(self.client.encode())  # all that differs between clients' headers


@dataclass(frozen=True)
class Totals:
    """Bytes of a whole run, all clients together. ``delivery`` is the final model's, which ``down`` includes.

    ``up`` has what clients then say of their models. Validation is the simulation's, which looks at them for nothing.
    """

    up: int
    down: int
    delivery: int
    messages: int  # in each direction, without those of the end
    catch_up: int  # what clients that missed rounds cost more than those that did not, in ``down``


def measure(
    agreement: Agreement, clients: Sequence[ClientId], some_miss: bool, hidden: int = 64, choices: bool = True
) -> Traffic:
    """Simulate rounds until messages are as they will be, and one dense round to compare them with.

    Args:
        clients: all that take part; the messages of the one with the longest id are measured.
        some_miss: do clients miss rounds?
        hidden: width of the model's hidden states, of which clients may describe their data.
        choices: have their items options to choose from?
    """
    measured = max(clients, key=lambda client: len(client.encode()))
    others = [client for client in clients if client != measured]
    simulation = _Simulation(agreement, [measured, *others[: SITES - 1]], hidden)
    up: list[Parts] = []
    down: list[Parts] = []
    missed = [simulation.missed(measured, some_miss)]
    seconds: list[float] = []
    bound = 0.0
    for _ in range(agreement.codec.warmup_rounds + SETTLING):
        seconds.append(simulation.round())
        asked, replied = simulation.messages[measured]
        up.append(simulation.parts["up"])
        down.append(simulation.parts["down"])
        missed.append(simulation.missed(measured, some_miss))
        bound = _bound(agreement, asked, replied)
    return Traffic(
        measured, tuple(up), tuple(down), tuple(missed),
        whole=_whole(simulation.state, measured, agreement),
        evaluation=_evaluation(measured, agreement, choices),
        entropy_bound=bound,
        log=sum(map(len, simulation.state.log)),
        seconds=statistics.median(seconds),
    )  # fmt: skip


def dense_fp32_round_trip(initial: Adapter, client: ClientId) -> int:
    """Bytes of an update and a broadcast that carry the whole adapter in float32, as plain FedIT sends it."""
    simulation = _Simulation(Agreement(fedit(), CodecConfig(values="fp32"), initial), [client])
    for _ in range(2):  # the first round's broadcast has nothing to tell
        simulation.round()
    return sum(sum(parts.values()) for parts in simulation.parts.values())


def totals(traffic: Traffic, participants: Sequence[ClientId], config: FederationConfig, seed: int) -> Totals:
    """Add up all messages of a run: who is drawn in which round is what the run itself will draw."""
    up = down = messages = punctual = 0
    version = dict.fromkeys(participants, 0)
    for round in range(1, config.rounds + 1):
        for client in sample(participants, config.fraction, seed, round):
            up += traffic.bytes_up(round, client)
            down += traffic.bytes_down(round - 1, round - 1 - version[client], client)
            punctual += traffic.bytes_down(round - 1, min(1, round - 1), client)
            version[client] = round - 1
            messages += 1
    delivery = sum(traffic.bytes_down(config.rounds, config.rounds - version[c], c) for c in participants)
    up += sum(traffic.bytes_evaluation(c) for c in participants)
    return Totals(up, down + delivery, delivery, messages, down - punctual)


class _Simulation:
    """Rounds of clients whose training is a draw of normal numbers. ``messages`` and ``parts`` are the last round's."""

    def __init__(self, agreement: Agreement, clients: Sequence[ClientId], hidden: int = 64) -> None:
        self.agreement = agreement
        self.state: ServerState = server.start(agreement)
        self.messages: dict[ClientId, tuple[bytes, bytes]] = {}
        self.parts: dict[str, Parts] = {}
        self._clients = list(clients)
        self._memory = {client: agreement.method.init_client(client, agreement.initial) for client in clients}
        self._training = 0.0
        self._hidden = hidden

    def round(self) -> float:
        """One round with all clients. Returns the seconds that a visit took, without training."""
        began, self._training = time.perf_counter(), 0.0
        everybody = FederationConfig(fraction=1.0)
        self.state, record = run_round(
            self.state, self._clients, self.agreement, self._exchange, everybody, self.agreement.seed
        )
        self.parts = {e.direction: e.parts for e in record.ledger if e.client == self._clients[0]}
        return (time.perf_counter() - began - self._training) / len(self._clients)

    def missed(self, client: ClientId, all_numbers: bool) -> tuple[int, ...]:
        """Bytes down in the next round by how many versions the client has missed; at least for 0 and 1."""
        now = self.state.round
        return tuple(
            len(server.request(replace(self.state, versions={client: now - n}), client, self.agreement).blob)
            for n in range(now + 1 if all_numbers else min(now, 1) + 1)
        )

    def _exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes]]:
        for client in clients:
            asked = request(client)
            site = Site(client, 1, partial(self._train, client), partial(self._described, client))
            replied, self._memory[client] = handle(asked, self._memory[client], site, self.agreement)
            self.messages[client] = asked, replied
            yield client, replied

    def _train(self, client: ClientId, start: Adapter, round: int, first_step: int, penalty: Penalty | None) -> Trained:
        began = time.perf_counter()
        method, seed = self.agreement.method, self.agreement.seed
        generator = torch.Generator().manual_seed(derive(seed, "plan", client, round) % 2**63)

        def change(t: torch.Tensor) -> torch.Tensor:
            drawn = torch.randn(t.shape, generator=generator)
            return CHANGE * drawn.abs().clamp(min=1e-3).copysign(drawn)  # no element stays as it was

        trained = {name: t + change(t) if method.trainable(round, name) else t for name, t in start.items()}
        self._training += time.perf_counter() - began
        n = sum(algebra.ranks(trained).values())
        return Trained(trained, (0.0,), torch.rand(n, generator=generator))

    def _described(self, client: ClientId) -> Notes:
        generator = torch.Generator().manual_seed(derive(self.agreement.seed, "plan", client) % 2**63)
        return {
            "features": torch.randn((1 + PATTERNS) * self._hidden, generator=generator),
            "deviation": 1 + torch.rand(self._hidden, generator=generator),
            "answers": torch.ones(1),
            "items": torch.ones(1),
        }


def _bound(agreement: Agreement, asked: bytes, replied: bytes) -> float:
    up = bits_up(replied, agreement.up, agreement.schema, agreement.initial)
    return (up + bits_down(asked, agreement.down, agreement.schema, agreement.initial, agreement.method.kinds)) / 8


def _whole(state: ServerState, client: ClientId, agreement: Agreement) -> int:
    """Bytes of a broadcast to a client that knows nothing, after every element has changed."""
    known = {name: t + 1 for name, t in agreement.version_0.items()}
    state = replace(state, known=known, log=(), versions={}, group_of={})
    return len(server.request(state, client, agreement).blob)


def _evaluation(client: ClientId, agreement: Agreement, choices: bool) -> int:
    """Bytes of an evaluation, whatever it says."""
    said = Evaluation(
        round=1,
        client=client,
        n_train=1,
        test=HeldOut(1, 0.0, 0.0) if choices else HeldOut(1),
        scores={model: Score(0, 1, 0.0) for model in agreement.scored},
        ranks=algebra.ranks(agreement.initial),
    )
    return len(encode_evaluation(said, agreement.up, agreement.schema, agreement.initial))
