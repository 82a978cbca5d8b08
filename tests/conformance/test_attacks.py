"""What no client can have to say is refused, under every method, and leaves no trace but its failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import resealed
from attacks import CLAIMS, LIES, RANKS, REFUSED, Attack, Message
from capfl import checkpoint
from capfl.config.schema import FederationConfig
from capfl.methods import METHODS
from capfl.types import ClientId, Failure, Kind, Request
from fake import Fake

SKIP = FederationConfig(on_failure="skip")


class Attacked(Fake):
    """Client b attacks, each round in another way; or is not there at all."""

    def __init__(self, method: str, codec: str, attacks: Sequence[Attack | None]) -> None:
        super().__init__(method, codec)
        self.attacks = attacks
        self.first: bytes | None = None

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        attack = self.attacks[round - 1]
        for client, reply in super().exchange(kind, round, clients, request):
            assert isinstance(reply, bytes)
            if client != "b":
                yield client, reply
            elif attack is None:
                yield client, Failure(client, "power", "gone")
            else:
                self.first = self.first or reply
                yield client, attack(Message.of(reply, self.agreement), self.first)


@pytest.mark.parametrize("codec", ["fp32", "default"])
@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_is_refused_and_recorded(method: str, codec: str) -> None:
    attacks = CLAIMS if method == "local" else REFUSED  # it sends no change
    fake = Attacked(method, codec, list(attacks.values()))
    absent = Attacked(method, codec, [None] * len(attacks))
    for name in attacks:
        (record,) = fake.play(1, SKIP)
        assert [failure.client for failure in record.failures] == ["b"], f"{name} was let in"
        assert record.clients == ("a", "c")
        absent.play(1, SKIP)
        assert checkpoint.server_to_bytes(fake.state) == checkpoint.server_to_bytes(absent.state), (
            f"{name} left a trace"
        )


class Damaged(Fake):
    """Client b's reply is damaged, and has a checksum that fits."""

    damage: tuple[tuple[int, int], ...] = ()

    def exchange(
        self, kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client, reply in super().exchange(kind, round, clients, request):
            assert isinstance(reply, bytes)
            for at, value in self.damage if client == "b" else ():
                reply = resealed(reply, 20 + at % (len(reply) - 24), bytes([value]))
            yield client, reply


@pytest.mark.parametrize(
    ("method", "codec"),
    [
        ("ca-pfl", "default"),
        ("ca-pfl", "bf16"),
        ("fedit", "fp32"),
        ("hetlora", "default"),
        ("flora", "default"),
        ("flasc", "fp32"),
    ],
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
def test_whatever_is_in_a_message_the_server_goes_on(method: str, codec: str, damage: list[tuple[int, int]]) -> None:
    fake = Damaged(method, codec)
    fake.damage = tuple(damage)
    fake.play(1, SKIP)
    fake.damage = ()
    fake.play(1, SKIP)
    assert fake.state.round == 2
    for t in (*fake.state.adapter.values(), *fake.state.notes.values()):
        assert bool(t.isfinite().all())


@pytest.mark.parametrize("codec", ["fp32", "default"])
def test_lies_about_data_and_ranks_are_refused(codec: str) -> None:
    fake = Attacked("ca-pfl", codec, list(LIES.values()))
    for name in LIES:
        fake.memory.pop("b", None)  # it describes its data as if it had never been heard
        fake.changes["b"].clear()
        (record,) = fake.play(1, SKIP)
        (failure,) = record.failures
        assert failure.client == "b", f"{name} was let in"
        assert "note" in failure.reason or "posterior" in failure.reason or "description" in failure.reason
    assert all(bool(t.isfinite().all()) for t in fake.state.adapter.values())
    assert all(bool(t.isfinite().all()) for t in fake.state.notes.values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("codec", ["fp32", "default", "ternary"])
def test_lies_about_unequal_ranks_are_refused(codec: str) -> None:
    fake = Attacked("hetlora", codec, list(RANKS.values()))  # by turns, client b has one of two ranks
    for name in RANKS:
        (record,) = fake.play(1, SKIP)
        assert [failure.client for failure in record.failures] == ["b"], f"{name} was let in"
        assert "note 'alive'" in record.failures[0].reason
        assert record.ranks.keys() == {"a", "c"}
