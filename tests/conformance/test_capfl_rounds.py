"""CA-PFL in whole rounds, without a model: what it promises about averaging, messages and clients without peers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from adapters import CODECS
from capfl import adapter as algebra
from capfl.config.schema import FederationConfig, MethodConfig
from capfl.methods import build
from capfl.roles import Agreement, server
from capfl.round import run_round
from capfl.types import Adapter, ClientId
from fake import CLIENTS, Fake, averaged, bits, initial, steps


def fake(codec: str, **settings: object) -> Fake:
    made = Fake("ca-pfl", codec)
    made.agreement = Agreement(build(MethodConfig(name="ca-pfl", **settings)), CODECS[codec], initial(), "base", seed=3)
    made.state = server.start(made.agreement, CLIENTS)
    return made


@pytest.mark.parametrize(
    ("clients", "settings"),
    [
        (["a"], {"budget": "uniform"}),
        (["a"], {"budget": "uniform", "peers": "all"}),
        (CLIENTS, {"budget": "uniform", "peers": "all"}),
        (CLIENTS, {"rank_floor": 0.0, "peers": "all"}),
    ],
)
def test_dense_messages_of_all_ranks_are_federated_averaging_bit_for_bit(
    clients: Sequence[ClientId], settings: dict[str, object]
) -> None:
    played = fake("fp32", **settings)
    state = played.state
    for _ in range(4):
        played.state = state
        state, _ = run_round(state, clients, played.agreement, played.exchange, FederationConfig(), seed=0)
    assert bits(state.adapter) == bits(averaged(clients, 4))


@pytest.mark.parametrize("rank_floor", [0.0, 0.9])
def test_a_client_sends_exactly_its_budget_whatever_its_own_model_does_without(rank_floor: float) -> None:
    played = fake("default", rank_floor=rank_floor)
    records = played.play(6)
    budget = algebra.size(initial()) // 3  # the default codec sends a third
    for name in CLIENTS:
        assert [sum(int(t.count_nonzero()) for t in sent.values()) for sent in played.arrived[name]] == [budget] * 6
        assert (min(records[-1].ranks[name]) < 2) == (rank_floor > 0)


def alone(name: ClientId, rounds: Sequence[int]) -> Adapter:
    """Where a client gets by its own steps, from the adapter that all begin with."""
    adapter = initial()
    for round in rounds:
        adapter = algebra.add(adapter, steps(name, round))
    return adapter


@pytest.mark.parametrize("fraction", [1.0, 0.3])
@pytest.mark.parametrize("codec", CODECS)
def test_a_client_without_peers_has_what_training_alone_gives(codec: str, fraction: float) -> None:
    """Whenever it is first asked: c is like nobody. Its residual is of what was sent, and is in its adapter already."""
    played = fake(codec, rank_floor=0.0)
    asked = [record.round for record in played.play(7, FederationConfig(fraction=fraction)) if "c" in record.clients]
    assert asked
    assert fraction == 1.0 or asked[0] > 1
    assert bits(played.memory["c"].adapter) == bits(alone("c", asked))
