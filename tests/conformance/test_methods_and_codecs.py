"""What every method keeps to, under every codec. A new method or codec is tested here by being in its table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from capfl import checkpoint
from capfl.config.schema import MethodConfig
from capfl.engines import debug, serial
from capfl.experiment import run
from capfl.methods import METHODS, build
from capfl.roles import Agreement, client, server
from capfl.round import run_round
from capfl.types import Adapter, ClientState, Failure
from capfl.wire import CODECS
from support import tiny_config

pytestmark = [pytest.mark.parametrize("codec", CODECS), pytest.mark.parametrize("method", METHODS)]

CLIENTS = ["a", "b", "c"]


def initial() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{module}.{factor}": torch.randn(shape, generator=generator)
        for module in ("q", "v")
        for factor, shape in (("A", (2, 5)), ("B", (4, 2)))
    }


class Fake:
    """A federation without a model: each client moves its adapter by a fixed step of its own."""

    def __init__(self, method: str, codec: str) -> None:
        self.agreement = Agreement(build(MethodConfig(name=method)), CODECS[codec], initial())
        self.memory: dict[str, ClientState] = {}
        self.sizes: list[tuple[str, int]] = []
        self.backwards = False

    def site(self, name: str) -> client.Site:
        def train(start: Adapter, round: int, first_step: int) -> tuple[Adapter, tuple[float, ...]]:
            step = (ord(name) - 96) * 0.01 * (1 + first_step)
            for t in start.values():
                assert not t.requires_grad
            return {key: t + step for key, t in start.items()}, (1.0, 0.5)

        return client.Site(name, 10 * (ord(name) - 96), train)

    def exchange(self, round, clients, request):  # type: ignore[no-untyped-def]
        replies: dict[str, bytes | Failure] = {}
        for name in reversed(clients) if self.backwards else clients:
            blob = request(name)
            before = self.memory.get(name) or self.agreement.method.init_client(name, self.agreement.initial)
            memory = checkpoint.client_from_bytes(checkpoint.client_to_bytes(before), self.agreement.initial)
            reply, self.memory[name] = client.handle(blob, memory, self.site(name), self.agreement)
            self.sizes += [("down", len(blob)), ("up", len(reply))]
            replies[name] = reply
        yield from sorted(replies.items())

    def play(self, rounds: int = 3):  # type: ignore[no-untyped-def]
        config = tiny_config("unused").federation
        state = self.agreement.method.init_server(self.agreement.initial)
        records = []
        for _ in range(rounds):
            blob = checkpoint.server_to_bytes(state)
            state = checkpoint.server_from_bytes(blob, self.agreement.initial)
            new, record = run_round(state, CLIENTS, self.agreement, self.exchange, config, seed=0)
            assert checkpoint.server_to_bytes(state) == blob, "the server's state was changed in place"
            state = new
            records.append(record)
        return state, records


def test_states_survive_bytes_and_the_order_of_visits_does_not_matter(method: str, codec: str) -> None:
    forwards, backwards = Fake(method, codec), Fake(method, codec)
    backwards.backwards = True
    state, _ = forwards.play()
    other, _ = backwards.play()
    assert state.round == 3
    assert checkpoint.server_to_bytes(state) == checkpoint.server_to_bytes(other)
    for name in CLIENTS:
        assert checkpoint.client_to_bytes(forwards.memory[name]) == checkpoint.client_to_bytes(backwards.memory[name])
        assert forwards.memory[name].steps == 6


def test_the_ledger_is_the_sum_of_the_messages(method: str, codec: str) -> None:
    fake = Fake(method, codec)
    _, records = fake.play()
    for direction in ("down", "up"):
        counted = sum(e.bytes for r in records for e in r.ledger if e.direction == direction)
        assert counted == sum(n for d, n in fake.sizes if d == direction) > 0


def test_received_and_trained_values_stay_within_the_codecs_precision(method: str, codec: str) -> None:
    fake = Fake(method, codec)
    state, _ = fake.play(rounds=1)
    if not fake.agreement.method.has_global:
        assert all(torch.equal(t, fake.agreement.initial[key]) for key, t in state.adapter.items())
        return
    # weights 10, 20, 30 and steps 0.01, 0.02, 0.03
    mean = (10 * 0.01 + 20 * 0.02 + 30 * 0.03) / 60
    tolerance = {"fp32": 1e-6, "bf16": 2e-4}[codec]
    for key, t in state.adapter.items():
        torch.testing.assert_close(t - fake.agreement.initial[key], torch.full_like(t, mean), atol=tolerance, rtol=0)


def test_a_whole_run_is_the_same_on_every_engine(method: str, codec: str, runs: Path) -> None:
    states = []
    for name, engine in (("serial", serial), ("debug", debug)):
        out = runs / name
        summary, _ = run(tiny_config(out, method__name=method, codec__values=codec, data__items=24), engine)
        states.append({p.name: p.read_bytes() for p in sorted((out / "state").rglob("*")) if p.is_file()})
        personal = [row.personal for row in summary.rows]
        assert all(value is None for value in personal) == build(MethodConfig(name=method)).pooled
    assert states[0] == states[1]


def test_a_round_does_not_depend_on_a_lost_message_being_encoded_twice(method: str, codec: str) -> None:
    fake = Fake(method, codec)
    state = fake.agreement.method.init_server(fake.agreement.initial)
    assert server.request(state, "a", fake.agreement) == server.request(state, "a", fake.agreement)
