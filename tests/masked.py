"""A federation with secure aggregation and without a model, whose messages can be lost or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch

from adapters import resealed
from capfl import adapter as algebra
from capfl.config.privacy import PrivacyConfig
from capfl.config.schema import CodecConfig, FederationConfig, MethodConfig, TrainConfig
from capfl.errors import WireError
from capfl.maths.masks import Whole, kind_of
from capfl.maths.masks import masked as under_masks
from capfl.methods import build
from capfl.methods.secure import secure
from capfl.roles.agreement import Agreement
from capfl.roles.client import ANSWERS, LocalTrainer
from capfl.roles.keyring import Keyring
from capfl.roles.limits import Limits
from capfl.round import run_round
from capfl.types import (
    Adapter,
    ClientId,
    ClientState,
    Failure,
    HeldOut,
    Kind,
    Penalty,
    Request,
    RoundRecord,
    Score,
    ServerState,
    SplitName,
    Trained,
)  # fmt: skip
from capfl.wire import up_codec
from fake import initial
from scored import right

ON = PrivacyConfig(secure_aggregation="honest-server")
LYING = PrivacyConfig(secure_aggregation="malicious-server")
LIMITS = Limits(TrainConfig(steps=2, learning_rate=0.01), None, 2.0, {})
EXACTLY = {"down_values": "fp32", "down_density": 1.0}  # so that what the server has summed can be seen
TERNARY = CodecConfig(**EXACTLY)  # type: ignore[arg-type]
LEVELS = CodecConfig(values="4bit", density=0.5, **EXACTLY)  # type: ignore[arg-type]
DENSE = CodecConfig(values="2bit", density=1, compensation="off", **EXACTLY)  # type: ignore[arg-type]
N_RANKS = 4  # of ``fake.initial``
SKIP = FederationConfig(on_failure="skip")


def noisy(privacy: PrivacyConfig = ON) -> PrivacyConfig:
    """With noise, on changes that are clipped to a part of their length."""
    return privacy.model_copy(update={"clip": 0.1, "noise_multiplier": 1.0})


def ids(n: int) -> list[ClientId]:
    return [f"c{i:02d}" for i in range(n)]


def steps(client: ClientId, round: int) -> Adapter:
    generator = torch.Generator().manual_seed(100 * round + int(client[1:]))
    return {name: 0.01 * torch.randn(t.shape, generator=generator) for name, t in initial().items()}


def n_test(client: ClientId) -> int:
    return 3 + int(client[1:])


def felt(client: ClientId) -> torch.Tensor:
    """How the loss of a client felt each rank."""
    return torch.linspace(0.5, 1.0 + int(client[1:]), N_RANKS)


Mangle = Callable[[bytes], bytes | Failure]


class World:
    """A server and n clients in one process.

    Attributes:
        wrong: what becomes of a reply, by kind and client.
        replies: the last ones, as they came.
    """

    def __init__(
        self,
        n: int,
        codec: CodecConfig = TERNARY,
        method: str = "fedit",
        privacy: PrivacyConfig = ON,
        **settings: object,
    ) -> None:
        row = build(MethodConfig(name=method, **settings))  # type: ignore[arg-type]
        row = secure(row, privacy, SKIP, up_codec(codec, 3))
        self.agreement = Agreement(row, codec, initial(), "base", seed=3, limits=LIMITS)
        self.clients = ids(n)
        self.state: ServerState = row.start(initial(), self.clients)
        self.keyrings = {client: Keyring() for client in self.clients}
        self.memory = {client: ClientState(client) for client in self.clients}
        self.wrong: dict[tuple[Kind, ClientId], Mangle] = {}
        self.replies: dict[tuple[Kind, ClientId], bytes] = {}
        self.requests: dict[tuple[Kind, ClientId], bytes] = {}
        self.crossed: list[tuple[ClientId, str, int]] = []

    def trainer(self, client: ClientId) -> LocalTrainer:
        def train(start: Adapter, round: int, first: int, penalty: Penalty | None) -> Trained:
            moved = {name: t + steps(client, round)[name] for name, t in start.items()}
            return Trained(moved, (1.0, 1.0 + int(client[1:])), felt(client))

        def score(split: SplitName, adapters: Mapping[str, Adapter]) -> dict[str, Score]:
            return {model: right(k, n_test(client), 0.5) for k, model in enumerate(adapters)}

        test = HeldOut(n_test(client), 0.25, 0.5)
        return LocalTrainer(client, 10, train, score=score, test=test, keyring=self.keyrings[client])

    def answer(self, kind: Kind, client: ClientId, blob: bytes) -> bytes:
        reply, self.memory[client] = ANSWERS[kind](blob, self.memory[client], self.trainer(client), self.agreement)
        return reply

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            blob = self.requests[kind, client] = request(client)
            self.crossed.append((client, "down", len(blob)))
            try:
                reply: bytes | Failure = self.answer(kind, client, blob)
            except WireError as error:
                reply = Failure(client, kind, str(error), error.code)
            if isinstance(reply, bytes):
                self.replies[kind, client] = reply
                reply = self.wrong.get((kind, client), lambda same: same)(reply)
            if isinstance(reply, bytes):
                self.crossed.append((client, "up", len(reply)))
            yield client, reply

    def drop(self, kind: Kind, *clients: ClientId) -> None:
        self.wrong |= {(kind, client): lambda reply, c=client: Failure(c, kind, "gone") for client in clients}  # type: ignore[misc]

    def play(self, config: FederationConfig = SKIP) -> RoundRecord:
        self.state, record = run_round(self.state, self.clients, self.agreement, self.exchange, config, seed=0)
        return record

    def plain(self, present: Sequence[ClientId], asked: int, round: int = 1) -> Adapter:
        """The mean of the clients' numbers, added up without any mask, in a round in which all ranks are alike."""
        ranks = self.agreement.method.ranks
        summed = self.agreement.summed(round, round, asked, ranks.importance(ranks.start(initial(), self.clients)))
        said = np.zeros(ranks.n_summed(N_RANKS))
        total = None
        for client in present:
            trained = {name: t + steps(client, round)[name] for name, t in initial().items()}
            draw = self.keyrings[client].draw()
            own = summed.whole(algebra.subtract(trained, initial()), (2.0 + int(client[1:])) / 2, 2, said, draw)
            total = own if total is None else total.plus(own)
        assert total is not None
        return summed.mean(total, len(present)).change


def noise(reply: bytes) -> bytes:
    """Another masked update in the place of one."""
    n = min(40, len(reply) // 4)
    return resealed(reply, len(reply) - 4 - n, b"\x5a" * n)


def expanded(secret: bytes, n_values: int, width: int, n_numbers: int) -> Whole:
    """The mask of a secret, alone."""
    nothing = Whole(np.zeros(n_values, kind_of(width)), width, np.zeros(n_numbers, np.uint32))
    return under_masks(nothing, [(secret, 1)])
