"""A federation without a model, whose clients are checked to know what the server says that they know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from adapters import CODECS
from capfl import adapter as algebra
from capfl import checkpoint
from capfl.config.schema import CodecConfig, FederationConfig, MethodConfig, TrainConfig
from capfl.errors import WireError
from capfl.methods import build
from capfl.roles import Agreement, client, server
from capfl.roles.door import Limits
from capfl.round import run_round
from capfl.types import (
    Adapter,
    ClientId,
    ClientState,
    Failure,
    Kind,
    Notes,
    Request,
    RoundRecord,
    ServerState,
    Trained,
    Update,
)  # fmt: skip
from capfl.wire import decode_broadcast

CLIENTS = ["a", "b", "c"]
LIMITS = Limits(
    TrainConfig(steps=2, learning_rate=0.01), 1000, 2.0, {"features": 48, "deviation": 16, "answers": 1}
)  # what honest clients keep to, under every method and codec


def of(method: str, codec: str) -> Agreement:
    made = build(MethodConfig(name=method))
    return Agreement(made, codec_of(method, codec), initial(), "base", seed=3, limits=LIMITS)


def codec_of(method: str, codec: str) -> CodecConfig:
    """A codec of the table, with what is part of the method itself: of flasc, that the largest values are sent."""
    part = {"mask": "top", "scope": "global", "compensation": "off"} if method == "flasc" else {}
    return CODECS[codec].model_copy(update=part)


def initial() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{module}.{factor}": torch.randn(shape, generator=generator)
        for module in ("q", "v")
        for factor, shape in (("A", (2, 25)), ("B", (20, 2)))
    }


def steps(name: ClientId, round: int) -> Adapter:
    """How a client's adapter moves in a round."""
    generator = torch.Generator().manual_seed(100 * round + ord(name))
    return {key: 0.01 * torch.randn(t.shape, generator=generator) for key, t in initial().items()}


def n_train(name: ClientId) -> int:
    return 10 * (ord(name) - 96)


def described(name: ClientId) -> Notes:
    """What a client says of its data: a and b have the same prompts and answers, c has others."""
    generator = torch.Generator().manual_seed(int(name > "b"))
    mean, noise = (
        torch.randn(48, generator=generator),
        torch.randn(48, generator=torch.Generator().manual_seed(ord(name))),
    )
    return {
        "features": mean + 0.1 * noise / n_train(name) ** 0.5,
        "deviation": torch.full((16,), 0.1),
        "answers": torch.tensor([4.0]),
        "items": torch.tensor([float(n_train(name))]),
    }


def without_dead_ranks(change: Adapter, start: Adapter) -> Adapter:
    """No gradient reaches a rank whose row of A and column of B are zero."""
    kept = dict(change)
    for module, down, up in algebra.factors(start):
        dead = ~(down.any(1) | up.any(0))
        kept[f"{module}.A"] = change[f"{module}.A"].masked_fill(dead[:, None], 0.0)
        kept[f"{module}.B"] = change[f"{module}.B"].masked_fill(dead, 0.0)
    return kept


def sensed(adapter: Adapter) -> torch.Tensor:
    """A sensitivity to each rank: that of the first is much the smallest."""
    n = sum(algebra.ranks(adapter).values())
    return torch.arange(n) + 0.01


def bits(adapter: Adapter) -> bytes:
    return b"".join(t.numpy().tobytes() for t in adapter.values())


def averaged(clients: Sequence[ClientId], rounds: int) -> Adapter:
    """FedAvg as McMahan et al. write it, arXiv:1602.05629, on the changes: weights by items, sums in float64."""
    theta = initial()
    weights = {name: float(n_train(name)) for name in clients}
    for round in range(1, rounds + 1):
        changes = {name: algebra.subtract(algebra.add(theta, steps(name, round)), theta) for name in clients}
        for key in theta:
            weighted = sum(changes[name][key].double() * weights[name] for name in clients)
            theta[key] = theta[key] + (weighted / sum(weights.values())).float()
    return theta


class Fake:
    """A federation without a model. Every client is checked to know what the server says that it knows."""

    def __init__(self, method: str, codec: str) -> None:
        self.changes: dict[ClientId, list[Adapter]] = {name: [] for name in CLIENTS}
        self.agreement = of(method, codec)
        self.state = server.start(self.agreement, CLIENTS)
        self.memory: dict[ClientId, ClientState] = {}
        self.sizes: list[tuple[str, int]] = []
        self.arrived: dict[ClientId, list[Adapter]] = {name: [] for name in CLIENTS}
        self.sent: list[tuple[Adapter, Adapter]] = []  # what each message was to say, and what it said
        self.backwards = False

    def watched(self) -> Agreement:
        """The agreement, with notes of what clients want to send and of what the server makes of it."""
        method = self.agreement.method

        def collect(start: Adapter, trained: Trained, memory: ClientState) -> tuple[Adapter, ClientState]:
            change, after = method.collect(start, trained, memory)
            self.changes[memory.client].append(change)
            return change, after

        def aggregate(state: ServerState, updates: Iterable[Update]) -> ServerState:
            self.aggregated = method.aggregate(state, updates)
            return self.aggregated

        return replace(self.agreement, method=replace(method, collect=collect, aggregate=aggregate))

    def site(self, name: ClientId) -> client.Site:
        def train(start: Adapter, round: int, first: int, penalty: object) -> Trained:
            assert first == 2 * len(self.changes[name])
            assert not any(t.requires_grad for t in start.values())
            moved = without_dead_ranks(steps(name, round), start)
            moving = {key: t for key, t in moved.items() if self.agreement.method.trainable(round, key)}
            trained = algebra.add(start, moving)
            return Trained(trained, (1.0, 0.5), sensed(trained))

        return client.Site(name, n_train(name), train, lambda: described(name))

    def remembered(self, name: ClientId) -> ClientState:
        """As it comes back from the client's disk."""
        memory = self.memory.get(name) or self.agreement.method.init_client(name, self.agreement.initial)
        return checkpoint.client_from_bytes(checkpoint.client_to_bytes(memory), self.agreement.initial)

    def told(self, name: ClientId, blob: bytes) -> ClientState:
        message = decode_broadcast(blob, self.agreement.down, self.agreement.schema, self.agreement.method.kinds)
        memory = client.hear(message, self.remembered(name), self.agreement)
        return client.aging(memory, message.round, self.agreement)

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        replies: dict[str, bytes | Failure] = {}
        for name in reversed(clients) if self.backwards else clients:
            blob = request(name)
            self.sizes.append(("down", len(blob)))
            try:
                pending = self.told(name, blob)
                assert bits(pending.known) == bits(self.state.told(name).known)
                reply, self.memory[name] = client.handle(blob, self.remembered(name), self.site(name), self.watched())
            except WireError as error:
                replies[name] = Failure(name, "WireError", str(error))
                continue
            replies[name] = reply
            self.sizes.append(("up", len(reply)))
            arrived = server.read_update(reply, name, round, self.agreement)[0].adapter
            self.arrived[name].append(arrived)
            change, left = self.changes[name][-1], pending.residual
            whole = {key: t + left[key] if key in left else t for key, t in change.items()}
            self.sent.append(({key: whole[key] for key in arrived}, arrived))
        yield from sorted(replies.items())

    def play(self, rounds: int = 3, config: FederationConfig | None = None) -> list[RoundRecord]:
        records = []
        for _ in range(rounds):
            blob = checkpoint.server_to_bytes(self.state)
            self.state = checkpoint.server_from_bytes(blob, self.agreement.initial)
            new, record = run_round(
                self.state, CLIENTS, self.watched(), self.exchange, config or FederationConfig(), seed=0
            )
            assert checkpoint.server_to_bytes(self.state) == blob, "the server's state was changed in place"
            if self.agreement.version_0:
                target = self.agreement.method.broadcast(self.aggregated)
                known = self.state.known
                self.sent.append(
                    tuple(algebra.subtract({key: t[key] for key in known}, known) for t in (target, new.known))
                )
            self.state = new
            records.append(record)
        return records
