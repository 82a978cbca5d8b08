"""Bytes of a run, measured: rounds of messages of the real shapes, through the code that real rounds go through."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from capfl import adapter as algebra
from capfl.config.schema import CodecConfig, FederationConfig
from capfl.methods.table import METHODS
from capfl.plan.simulate import Parts, RelayedSimulation, Simulation, unpatched
from capfl.roles.agreement import Agreement
from capfl.round import sample
from capfl.types import Adapter, ClientId, Evaluation, HeldOut, Score
from capfl.wire import encode_evaluation

SITES = 4  # simulated clients: those whose messages are measured, and others that their changes are averaged with
SETTLING = 6  # rounds in which residuals fill; the last one stands for all that follow


@dataclass(frozen=True)
class Traffic:
    """The messages of one client, round by round from the first; the last round stands for all after it."""

    client: ClientId
    up: tuple[Parts, ...]
    down: tuple[Parts, ...]
    missed: tuple[tuple[int, ...], ...]  # after each round (0, 1, ...), bytes down to who knows 0, 1, ... versions less
    whole: int  # bytes down with the whole adapter, every element of it
    evaluation: int  # bytes up, of what the client says of its models in the end
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

    ``up`` has what clients then say of their models. Validations are not in it: in a simulation nobody is asked.
    """

    up: int
    down: int
    delivery: int
    messages: int  # in each direction, without those of the end
    catch_up: int  # what clients that missed rounds cost more than those that did not, in ``down``


def measure(
    agreement: Agreement,
    clients: Sequence[ClientId],
    some_miss: bool,
    hidden: int = 64,
    choices: bool = True,
    visits: int = 1,
) -> dict[ClientId, Traffic]:
    """Simulate rounds until messages are as they will be. Gives every client's traffic; most share one.

    Args:
        clients: all that take part. Of those with the same ranks, the one with the longest id is measured.
        some_miss: do clients miss rounds?
        hidden: width of the model's hidden states, of which clients may describe their data.
        choices: have their items options to choose from?
        visits: clients in a round, whose updates all go down if the method relays them.
    """
    relays = agreement.method.combine.relays
    agreement = unpatched(agreement) if relays else agreement
    alike = _alike(agreement, clients)
    measured = [max(group, key=lambda client: len(client.encode())) for group in alike]
    others = [client for client in clients if client not in measured]
    taking_part = [*measured, *others[: max(0, SITES - len(measured))]]
    if relays:
        simulation: Simulation = RelayedSimulation(agreement, clients, taking_part, hidden, visits)
    else:
        simulation = Simulation(agreement, clients, taking_part, hidden)

    def missed(client: ClientId) -> tuple[int, ...]:
        now = simulation.state.round
        return tuple(simulation.bytes_down(client, n) for n in range(now + 1 if some_miss else min(now, 1) + 1))

    up, down, known = ({client: list[Any]() for client in measured} for _ in range(3))
    seconds: list[float] = []
    for client in measured:
        known[client].append(missed(client))
    for _ in range(SETTLING):
        seconds.append(simulation.round())
        for client in measured:
            up[client].append(simulation.parts[client]["up"])
            down[client].append(simulation.parts[client]["down"])
            known[client].append(missed(client))
    found = [
        Traffic(
            client, tuple(up[client]), tuple(down[client]), tuple(known[client]),
            whole=simulation.whole(client),
            evaluation=_evaluation(client, agreement, choices),
            log=simulation.log,
            seconds=statistics.median(seconds),
        )
        for client in measured
    ]  # fmt: skip
    return {client: traffic for group, traffic in zip(alike, found, strict=True) for client in group}


def _alike(agreement: Agreement, clients: Sequence[ClientId]) -> list[list[ClientId]]:
    """Clients that have the same ranks, and so messages of one length."""
    state, ranks = agreement.method.start(agreement.initial, clients), agreement.method.ranks
    groups: dict[str, list[ClientId]] = {}
    for client in clients:
        marks = ranks.of_client(state, client)
        groups.setdefault(str(None if marks is None else marks.tolist()), []).append(client)
    return list(groups.values())


def mean_parts(parts: Sequence[Parts]) -> dict[str, int]:
    """The mean of each part over clients, rounded."""
    names = dict.fromkeys(name for each in parts for name in each)
    return {name: round(statistics.fmean(each.get(name, 0) for each in parts)) for name in names}


def dense_fp32_round_trip(initial: Adapter, client: ClientId) -> int:
    """Bytes of an update and a broadcast that carry the whole adapter in float32, as plain FedIT sends it."""
    simulation = Simulation(
        Agreement(METHODS["fedit"].make(0, {}), CodecConfig(values="fp32"), initial), [client], [client]
    )
    for _ in range(2):  # the first round's broadcast has nothing to tell
        simulation.round()
    return sum(sum(parts.values()) for parts in simulation.parts[client].values())


def totals(traffic: Mapping[ClientId, Traffic], config: FederationConfig, seed: int) -> Totals:
    """Add up all messages of a run: who is drawn in which round is what the run itself will draw."""
    up = down = messages = punctual = 0
    participants = list(traffic)
    version = dict.fromkeys(participants, 0)
    for round in range(1, config.rounds + 1):
        for client in sample(participants, config.fraction, seed, round):
            own = traffic[client]
            up += own.bytes_up(round, client)
            down += own.bytes_down(round - 1, round - 1 - version[client], client)
            punctual += own.bytes_down(round - 1, min(1, round - 1), client)
            version[client] = round - 1
            messages += 1
    delivery = sum(traffic[c].bytes_down(config.rounds, config.rounds - version[c], c) for c in participants)
    up += sum(traffic[c].bytes_evaluation(c) for c in participants)
    return Totals(up, down + delivery, delivery, messages, down - punctual)


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
