"""Tiny adapters, and a federation without a model: what tests of the parts of a method share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from adapters import CODECS, normal
from capfl import adapter as algebra
from capfl.config.schema import FederationConfig, TrainConfig
from capfl.methods import Method
from capfl.methods.combine import Combine
from capfl.methods.peers import Description
from capfl.roles.agreement import Agreement
from capfl.roles.client import ANSWERS, LocalTrainer
from capfl.roles.door import Limits
from capfl.roles.server import read_update
from capfl.round import run_round
from capfl.types import (
    Adapter,
    ClientId,
    ClientState,
    Failure,
    Kind,
    Penalty,
    Request,
    RoundRecord,
    ServerState,
    Trained,
    Update,
)  # fmt: skip

CLIENTS = ("a", "b", "c")
INITIAL = normal(0, {f"{m}.{f}": torch.zeros(s) for m in "qv" for f, s in (("A", (2, 25)), ("B", (20, 2)))})
"""Two modules of rank 2: 180 elements."""
N = 4  # ranks of all modules together
LIMITS = Limits(TrainConfig(steps=2, learning_rate=0.01), 1000, 2.0, {"features": 48, "deviation": 16, "answers": 1})
"""What honest clients keep to."""


def row(**parts: object) -> Method:
    return Method("own", "a row of a test", "nowhere", **parts)  # type: ignore[arg-type]


def pair(a: Sequence[float], b: float) -> Adapter:
    """One module of rank 1."""
    return {"m.A": torch.tensor([list(a)]), "m.B": torch.tensor([[b]])}


def bits(adapter: Adapter) -> bytes:
    return b"".join(t.numpy().tobytes() for t in adapter.values())


def products(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What an adapter adds to the base, over its scale: B A, and the patch where there is one; float64."""
    nothing = torch.zeros(())
    pairs = algebra.factors(adapter)
    return {m: up.double() @ down.double() + adapter.get(f"{m}.W", nothing).double() for m, down, up in pairs}


def folded(
    combine: Combine, parts: Iterable[tuple[Adapter, float]], start: Adapter = INITIAL, round: int = 1
) -> Adapter:
    """The adapter after a round in which these changes came, each with its weight."""
    fold = combine.start(combine.first(start), round)
    for change, weight in parts:
        fold.add(change, weight)
    return fold.value()


def n_train(client: ClientId) -> int:
    return 10 * (ord(client) - 96)


def steps(client: ClientId, round: int) -> Adapter:
    """How a client's adapter moves in a round."""
    return normal(100 * round + ord(client), INITIAL, 0.01)


def description(client: ClientId, kind: int | None = None) -> Description:
    """What a client says of its data. Those of one kind are alike; by default a and b."""
    kind = int(client > "b") if kind is None else kind
    mean, noise = (torch.randn(48, generator=torch.Generator().manual_seed(seed)) for seed in (kind, ord(client)))
    return Description(mean + 0.1 * noise / n_train(client) ** 0.5, torch.full((16,), 0.1), torch.tensor([4.0]))


def update(
    client: ClientId, change: Adapter | None = None, round: int = 1, n: int | None = None, **said: object
) -> Update:
    change = steps(client, round) if change is None else change
    return Update(round, client, change, n or n_train(client), 2, 1.0, **said)  # type: ignore[arg-type]


def averaged(clients: Sequence[ClientId], rounds: int) -> Adapter:
    """FedAvg as McMahan et al. write it, arXiv:1602.05629, on the changes: weights by items, sums in float64."""
    theta = dict(INITIAL)
    for round in range(1, rounds + 1):
        changes = {client: algebra.subtract(algebra.add(theta, steps(client, round)), theta) for client in clients}
        for name in theta:
            weighted = sum(changes[client][name].double() * n_train(client) for client in clients)
            theta[name] = theta[name] + (weighted / sum(map(n_train, clients))).float()
    return theta


class Federation:
    """Clients that need no model: an adapter moves by ``steps``, and each rank is felt more than the one before.

    Attributes:
        sent: the changes that each client wanted to send.
        replies: what each client answered in the last round.
    """

    def __init__(
        self, method: Method, codec: str = "fp32", clients: Sequence[ClientId] = CLIENTS, limits: Limits | None = LIMITS
    ) -> None:
        self.agreement = Agreement(method, CODECS[codec], INITIAL, "base", seed=3, limits=limits)
        self.clients = clients
        self.state: ServerState = method.start(INITIAL, clients)
        self.memory: dict[ClientId, ClientState] = {}
        self.sent: dict[ClientId, list[Adapter]] = {client: [] for client in clients}
        self.replies: dict[ClientId, bytes] = {}

    def trainer(self, client: ClientId) -> LocalTrainer:
        def train(start: Adapter, round: int, first: int, penalty: Penalty | None) -> Trained:
            factors = self.agreement.method.factors
            end = algebra.add(
                start, {name: t for name, t in steps(client, round).items() if factors.trains(round, name)}
            )
            alive = torch.cat([down.any(1) | up.any(0) for _, down, up in algebra.factors(start)])
            end = algebra.without(end, ~alive)  # no gradient reaches a rank whose row and column are zero
            self.sent[client].append(algebra.subtract(end, start))
            return Trained(end, (1.0, 0.5), torch.arange(N) + 0.01)

        return LocalTrainer(client, n_train(client), train, lambda: self.describe(client))

    def describe(self, client: ClientId) -> Description:
        return description(client)

    def remembered(self, client: ClientId) -> ClientState:
        return self.memory.get(client) or ClientState(client)

    def answer(self, client: ClientId, reply: bytes) -> bytes | Failure:
        """What arrives of an honest reply. To be overridden."""
        return reply

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            reply, after = ANSWERS[kind](request(client), self.remembered(client), self.trainer(client), self.agreement)
            self.memory[client], self.replies[client] = after, reply
            yield client, self.answer(client, reply)

    def play(self, rounds: int = 3, **settings: object) -> list[RoundRecord]:
        """So many rounds; ``settings`` are of the config's section federation."""
        records = []
        for _ in range(rounds):
            config = FederationConfig(**settings)  # type: ignore[arg-type]
            self.state, record = run_round(self.state, self.clients, self.agreement, self.exchange, config, seed=0)
            records.append(record)
        return records

    def arrived(self) -> dict[ClientId, Adapter]:
        """What the server has read of each client's last reply."""
        read = {c: read_update(reply, c, self.state.round, self.agreement) for c, reply in self.replies.items()}
        return {client: update.adapter for client, (update, _) in read.items()}

    def with_limits(self, **changes: object) -> Federation:
        limits = replace(LIMITS, **changes)  # type: ignore[arg-type]
        self.agreement = replace(self.agreement, limits=limits)
        return self
