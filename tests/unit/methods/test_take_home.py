"""What a client takes home, and the pull towards the server's adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters import same
from capfl import adapter as algebra
from capfl.methods.factors import BOTH, NOTHING, ONLY_A, ONLY_B, Factors
from capfl.methods.method import Method
from capfl.methods.peers import Peers, PeersMemory
from capfl.methods.posterior import Importance, Posterior, PosteriorMemory
from capfl.methods.take_home import AfterSteps, NearServer, Own, proximal
from capfl.roles.client import personal
from capfl.types import Adapter, ClientState
from fake import steps
from parts import INITIAL, Federation, pair, row

KNOWN = algebra.add(INITIAL, steps("b", 1))
OWN = algebra.add(INITIAL, steps("c", 1))


def taken(method: Method, memory: ClientState) -> Adapter | None:
    """What a client that remembers this takes home after round 3."""
    played = Federation(method)
    return personal(memory, 3, played.trainer("a"), played.agreement)


def memory(n_peers: int = 0) -> ClientState:
    kept = PeersMemory(n_peers=n_peers)
    return ClientState("a", trained=3, known=KNOWN, adapter=OWN, grouping=kept)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.0, algebra.add(KNOWN, steps("a", 3))),
        (0.5, algebra.add(KNOWN, algebra.scaled(steps("a", 3), 0.5))),
        (0.0, KNOWN),
    ],
)
def test_some_way_from_the_groups_adapter_to_where_its_own_steps_lead(share: float, expected: Adapter) -> None:
    for method in (row(takes_home=AfterSteps(share)), row(grouping=Peers(), takes_home=AfterSteps(share))):
        found = taken(method, memory(n_peers=2))
        for name, t in expected.items():
            torch.testing.assert_close(found[name], t, rtol=0, atol=1e-6)


def test_a_client_without_peers_goes_all_the_way_from_its_own_adapter() -> None:
    found = taken(row(grouping=Peers(), takes_home=AfterSteps(0.5)), memory(n_peers=1))
    assert same(found, algebra.add(OWN, steps("a", 3)))
    assert same(taken(row(factors=NOTHING), replace(memory(), known={})), algebra.add(OWN, steps("a", 3)))


def test_its_own_adapter_as_it_is() -> None:
    assert same(taken(row(factors=NOTHING, takes_home=Own()), memory()), OWN)
    assert taken(row(pooled=True), memory()) is None


def test_ranks_that_its_own_model_does_without_are_missing_however_it_is_made() -> None:
    prior = Importance(torch.full((4,), 2.0), torch.full((4,), 200.0))
    faint = replace(prior, beta=torch.tensor([1e6, 200.0, 200.0, 200.0]))
    remembered = replace(memory(n_peers=2), ranks=PosteriorMemory(prior, faint))
    for takes_home in (AfterSteps(0.5), AfterSteps(), Own()):
        found = taken(row(grouping=Peers(), ranks=Posterior(), takes_home=takes_home), remembered)
        assert not found["q.A"][0].any()
        assert not found["q.B"][:, 0].any()
        assert found["q.B"][:, 1].all()


# -- near the server's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factors", [row().factors, ONLY_B])
def test_an_adapter_of_its_own_is_trained_beside_and_never_travels(factors) -> None:  # type: ignore[no-untyped-def]
    played = Federation(row(factors=factors, takes_home=NearServer()))
    plain = Federation(row(factors=factors))
    played.rounds(2)
    plain.rounds(2)
    assert same(played.state.everybody.adapter, plain.state.everybody.adapter)
    kept = played.memory("a")
    assert kept.steps == plain.memory("a").steps == 4  # twice the work, on the same items
    moved = {n: t + steps("a", 1)[n] + steps("a", 2)[n] if factors.trains(1, n) else t for n, t in INITIAL.items()}
    for name, t in kept.adapter.items():
        torch.testing.assert_close(t, moved[name])
    assert same(personal(kept, 3, played.trainer("a"), played.agreement), INITIAL | kept.adapter)


def test_it_is_held_near_the_servers() -> None:
    held = NearServer(0.5).penalty(KNOWN)
    found = held.step(OWN, held.constants, 2.0)
    for name, t in KNOWN.items():  # half of the way at learning rate 2
        torch.testing.assert_close(found[name], (OWN[name] + t) / 2)


# -- the pull towards the server's -------------------------------------------------------------------------------


def test_the_pull_by_hand() -> None:
    """theta_g + (theta - theta_g) / (1 + rate alpha_f): at most there, never beyond; nothing changes in place."""
    start, now = pair([1.0, 2.0, 3.0], 0.5), pair([2.0, 2.0, 0.0], 1.5)
    held = proximal(0.5, start)
    found = held.step(now, held.constants, 2.0)
    assert found["m.A"].tolist() == [[1.5, 2.0, 1.5]]
    assert found["m.B"].tolist() == [[1.0]]
    assert same(now, pair([2.0, 2.0, 0.0], 1.5))
    assert same(held.step(start, held.constants, 2.0), start)
    assert same(held.step(now, held.constants, 1e30), start)
    assert set(held.step({"m.B": now["m.B"]}, held.constants, 2.0)) == {"m.B"}  # a frozen factor stays


@pytest.mark.parametrize("factors", [BOTH, ONLY_A, ONLY_B])
def test_it_acts_on_what_the_server_sent_in_methods_that_ask_for_it(factors: Factors) -> None:
    assert row(factors=factors).penalty(ClientState("a", known=factors.travelling(KNOWN)), 10) is None
    held = row(alpha_f=2.0, factors=factors).penalty(ClientState("a", known=factors.travelling(KNOWN)), 10)
    assert held is not None
    found = held.step(OWN, held.constants, 0.5)
    for name, t in OWN.items():
        torch.testing.assert_close(found[name], (t + KNOWN[name]) / 2 if factors.travels(name) else t)


def test_the_smaller_the_step_the_nearer_to_gradient_descent_on_the_term() -> None:
    held, rate = proximal(0.7, KNOWN), 1e-3
    now = {name: t.clone().requires_grad_() for name, t in OWN.items()}
    sum(0.35 * (t - KNOWN[name]).square().sum() for name, t in now.items()).backward()
    for name, t in held.step(OWN, held.constants, rate).items():
        torch.testing.assert_close((OWN[name] - t) / rate, now[name].grad, rtol=1e-2, atol=1e-3)
