"""A federation without a model: training adds numbers that follow from client and round. What happens is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from adapters import CODECS, resealed
from capfl import adapter as algebra
from capfl.checkpoint import StateReader
from capfl.config.schema import FederationConfig, MethodConfig, TrainConfig
from capfl.errors import WireError
from capfl.methods import build
from capfl.methods.peers import Description
from capfl.packing import pack
from capfl.roles import client as side
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.client import LocalTrainer
from capfl.roles.limits import Limits
from capfl.round import Talk, run_round, validate_round
from capfl.site import visit
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
from scored import right
from support import unpacked

CLIENTS = ["a", "b", "c", "d"]
"""a and b have the same prompts and answers, c and d have others. d is four times as large as a."""

STEPS = 2  # of every client in every round
LIMITS = Limits(
    TrainConfig(steps=STEPS, learning_rate=0.01), 1000, 2.0, {"features": 48, "deviation": 16, "answers": 1}
)  # what honest clients keep to, under every method and codec
SETTINGS: dict[str, dict[str, object]] = {
    "ca-pfl": {"turns": 1, "rff_output_dim": 16, "mlp_hidden_dim": 4},  # small
    "flexlora": {"rank_shares": (1.0, 0.5)},  # clients have both ranks or one of them, in turn
    "ca-pfl in turn": {"name": "ca-pfl", "turns": 4, "rff_output_dim": 16, "mlp_hidden_dim": 4},  # always alone
    "fedit in turns": {"name": "fedit", "turns": 2},  # two in a turn, or one
}
SKIP = FederationConfig(on_failure="skip")


def of(method: str, codec: str) -> Agreement:
    """What is agreed on for a method and a codec by name."""
    config = MethodConfig(**{"name": method} | SETTINGS.get(method, {}))  # type: ignore[arg-type]
    return Agreement(build(config), CODECS[codec], initial(), "base", seed=3, limits=LIMITS)


def initial() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{module}.{factor}": torch.randn(shape, generator=generator)
        for module in ("q", "v")
        for factor, shape in (("A", (2, 25)), ("B", (20, 2)))
    }


def steps(client: ClientId, round: int) -> Adapter:
    """How a client's adapter moves in a round."""
    generator = torch.Generator().manual_seed(100 * round + ord(client))
    return {name: 0.01 * torch.randn(t.shape, generator=generator) for name, t in initial().items()}


def n_train(client: ClientId) -> int:
    return 10 * (ord(client) - 96)


def described(client: ClientId) -> Description:
    """What a client says of its data."""
    group, own = (torch.Generator().manual_seed(seed) for seed in (int(client > "b"), ord(client)))
    noise = 0.1 * torch.randn(48, generator=own) / n_train(client) ** 0.5
    return Description(torch.randn(48, generator=group) + noise, torch.full((16,), 0.1), torch.tensor([4.0]))


def bits(adapter: Adapter) -> bytes:
    return b"".join(name.encode() + t.numpy().tobytes() for name, t in sorted(adapter.items()))


@dataclass
class Training:
    """One visit of a client to train: what it remembered, what it did, and what of that the server can read."""

    round: int
    client: ClientId
    change: Adapter
    residual: Adapter  # from before
    arrived: Adapter


@dataclass
class Disk:
    """States of clients by round, as ``ClientStore`` keeps them; as bytes or as they are."""

    reader: StateReader
    packed: bool
    kept: dict[ClientId, dict[int, ClientState]] = field(default_factory=dict)

    def load(self, client: ClientId, before: int) -> ClientState:
        earlier = {round: state for round, state in self.kept.get(client, {}).items() if round < before}
        state = earlier[max(earlier)] if earlier else ClientState(client)
        return self.reader.client(pack(state)) if self.packed else state

    def save(self, state: ClientState, round: int) -> None:
        self.kept.setdefault(state.client, {})[round] = state

    def newest(self, client: ClientId) -> ClientState:
        return self.load(client, before=10**6)


class Fake:
    """A server and its clients. Every client is checked to know what the server believes that it knows.

    Args:
        packed: states become bytes, and are read again, before every round and visit.
        backwards: clients are visited in the reverse order of their ids.
    """

    def __init__(self, agreement: Agreement, packed: bool = True, backwards: bool = False) -> None:
        self.agreement, self.packed, self.backwards = agreement, packed, backwards
        self.reader = StateReader(agreement.method, agreement.initial)
        self.state: ServerState = agreement.method.start(agreement.initial, CLIENTS)
        self.disk = Disk(self.reader, packed)
        self.crossed: list[tuple[ClientId, str, int]] = []  # client, direction and length of every message
        self.turns: list[list[ClientId]] = []  # who was asked to train at the same time
        self.trainings: list[Training] = []
        self.lost: set[ClientId] = set()  # their next replies do not arrive
        self.forged: dict[ClientId, Callable[[bytes], bytes]] = {}  # what arrives in place of their replies

    def trainer(self, client: ClientId) -> LocalTrainer:
        def train(start: Adapter, round: int, first: int, penalty: Penalty | None) -> Trained:
            assert first == self.disk.load(client, before=round).steps
            assert not any(t.requires_grad for t in start.values())
            if penalty is not None:
                assert all(bool(t.isfinite().all()) for t in penalty.step(start, penalty.constants, 1.0).values())
            moved = _of_living_ranks(steps(client, round), start)
            trains = self.agreement.method.factors.trains
            trained = algebra.add(start, {name: t for name, t in moved.items() if trains(round, name)})
            self._started, self._trained = start, Trained(trained, (1.0,) * STEPS, _sensitivity(trained))
            return self._trained

        def score(split: SplitName, adapters: Mapping[str, Adapter]) -> dict[str, Score]:
            for self.scored in adapters.values():
                pass
            return {model: right(1, n_train(client), 0.5) for model in adapters}

        return LocalTrainer(
            client, n_train(client), train, lambda: described(client), score, HeldOut(n_train(client), 0.25, 0.5)
        )

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        replies: dict[ClientId, bytes | Failure] = {}
        if kind == "train":
            self.turns.append(list(clients))
        for client in reversed(clients) if self.backwards else clients:
            blob = request(client)
            self.crossed.append((client, "down", len(blob)))
            before = self.disk.load(client, before=round)
            try:
                reply = visit(kind, round, blob, self.trainer(client), self.disk, self.agreement)  # type: ignore[arg-type]
            except WireError as error:
                replies[client] = Failure(client, kind, str(error), error.code)
                continue
            if self.packed and kind != "introduce" and client not in self.forged:
                self._check(client, blob, before, _state_behind(request))
            if kind == "train":
                self._record(client, before, reply, _state_behind(request))
            if client in self.lost:
                self.lost.remove(client)
                replies[client] = Failure(client, kind, "gone")
                continue
            reply = self.forged[client](reply) if client in self.forged else reply
            self.crossed.append((client, "up", len(reply)))
            replies[client] = reply
        yield from sorted(replies.items())

    def received(self, client: ClientId, blob: bytes, memory: ClientState) -> ClientState:
        """What a client remembers that is sent a message."""
        return side.received(side.opened(blob, self.trainer(client), self.agreement), memory, self.agreement)

    def play(
        self, rounds: int = 3, clients: Sequence[ClientId] = CLIENTS, config: FederationConfig = SKIP
    ) -> list[RoundRecord]:
        """So many rounds; the server's state is checked not to change in place."""
        records = []
        for _ in range(rounds):
            before = pack(self.state)
            state = unpacked(before, self.reader) if self.packed else self.state
            after, record = run_round(state, clients, self.agreement, self.exchange, config, seed=0)
            assert pack(state) == before, "the server's state was changed in place"
            self.state = after
            records.append(record)
        return records

    def _check(self, client: ClientId, blob: bytes, before: ClientState, state: ServerState) -> None:
        """The newest version of its group's adapter is what a client has that was sent a message."""
        heard, group = self.received(client, blob, before), state.group(client)
        assert bits(heard.known) == bits(group.known)
        assert bits(self.agreement.whole(heard.known)) == bits(group.adapter | group.known)
        assert heard.version == state.version

    def _record(self, client: ClientId, before: ClientState, reply: bytes, state: ServerState) -> None:
        round = state.round + 1
        change = self.agreement.method.change(self._started, self._trained, round)
        arrived = server.read_update(reply, client, state, self.agreement)[0].adapter
        self.trainings = [t for t in self.trainings if (t.round, t.client) != (round, client)]  # it is repeated
        self.trainings.append(Training(round, client, change, before.residual, arrived))


def _state_behind(request: Request) -> ServerState:
    """The server's state that a request is made of: within a round, after the turns so far."""
    talk = request.__self__  # type: ignore[attr-defined]
    assert isinstance(talk, Talk)
    return talk.state


@dataclass
class History:
    """What happened, in the order of ``play_history``."""

    fake: Fake
    states: dict[int, ServerState] = field(default_factory=dict)  # after each round
    records: dict[int, RoundRecord] = field(default_factory=dict)
    crossed: dict[int, list[tuple[ClientId, str, int]]] = field(default_factory=dict)  # messages of each round
    turns: dict[int, list[list[ClientId]]] = field(default_factory=dict)  # of each round
    replayed: list[tuple[ServerState, ServerState]] = field(default_factory=list)  # pairs that should be equal


def play_history(fake: Fake) -> History:
    """Six rounds in which everything happens that may happen to clients and servers.

    Round 1 is of a, b and c. In round 2 c's reply is lost. Then all validate; d has never been asked before.
    In round 3 b is left out. Round 4 is of a and d alone; it is done twice, as by a server that was killed before it
    had committed. Then b loses its state. In round 5 all take part, and validate. In round 6 d's update is forged.
    """
    made = History(fake)

    def keep(record: RoundRecord) -> None:
        made.states[fake.state.round], made.records[fake.state.round] = fake.state, record
        made.crossed[fake.state.round], made.turns[fake.state.round] = fake.crossed, fake.turns
        fake.crossed, fake.turns = [], []

    def again(clients: str) -> ServerState:
        """The state after a round that then did not happen."""
        before, trainings = fake.state, list(fake.trainings)
        fake.play(1, list(clients))
        after, fake.state, fake.trainings = fake.state, before, trainings
        fake.crossed, fake.turns = [], []
        return after

    keep(*fake.play(1, ["a", "b", "c"]))
    fake.lost.add("c")
    keep(*fake.play(1, ["a", "b", "c"]))
    _validate(made)
    keep(*fake.play(1, ["a", "c", "d"]))
    undone = again("ad")
    keep(*fake.play(1, ["a", "d"]))
    made.replayed.append((undone, fake.state))
    fake.disk.kept["b"].clear()
    keep(*fake.play(1))
    _validate(made)
    fake.lost.add("d")
    silent = again("abcd")
    fake.forged["d"] = lambda blob: resealed(blob, 20, b"\xff" * 4)  # of 2**32 - 1 training items
    keep(*fake.play(1))
    made.replayed.append((silent, fake.state))
    return made


def _validate(made: History) -> None:
    """All clients score the newest version, and know it from then on."""
    fake = made.fake
    record = made.records[fake.state.round]
    fake.state, longer = validate_round(fake.state, record, CLIENTS, fake.agreement, fake.exchange, SKIP)
    assert fake.state.versions == dict.fromkeys(CLIENTS, fake.state.version)
    made.records[fake.state.round] = longer
    made.crossed[fake.state.round] += fake.crossed
    fake.crossed = []


def without_time(record: RoundRecord) -> RoundRecord:
    return replace(record, seconds=0.0)


def _of_living_ranks(change: Adapter, start: Adapter) -> Adapter:
    """No gradient reaches a rank whose row of A and column of B are zero."""
    kept = dict(change)
    for module, down, up in algebra.factors(start):
        dead = ~(down.any(1) | up.any(0))
        kept[f"{module}.A"] = change[f"{module}.A"].masked_fill(dead[:, None], 0.0)
        kept[f"{module}.B"] = change[f"{module}.B"].masked_fill(dead, 0.0)
    return kept


def _sensitivity(adapter: Adapter) -> torch.Tensor:
    """That of the first rank is much the smallest."""
    return torch.arange(sum(algebra.ranks(adapter).values())) + 0.01
