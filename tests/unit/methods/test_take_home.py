"""What a client takes home, and the proximal term."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters import same
from capfl import adapter as algebra
from capfl.methods.factors import NOTHING, ONLY_A, ONLY_B
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
    expected = 0.25 * sum(float((OWN[name] - t).square().sum()) for name, t in KNOWN.items())
    assert float(held.term(OWN, held.constants)) == pytest.approx(expected, rel=1e-5)


# -- the proximal term -------------------------------------------------------------------------------------------


def test_the_proximal_term_by_hand() -> None:
    start = pair([1.0, 2.0, 3.0], 0.5)
    held = proximal(0.5, start)
    now = {name: t.clone().requires_grad_() for name, t in pair([2.0, 2.0, 0.0], 1.5).items()}
    value = held.term(now, held.constants)
    assert float(value.detach()) == 0.25 * (1 + 0 + 9 + 1)  # alpha_f / 2 times the squared distance
    value.backward()
    assert now["m.A"].grad.tolist() == [[0.5, 0.0, -1.5]]  # type: ignore[union-attr]
    assert float(held.term(start, held.constants)) == 0.0
    assert float(held.term({"m.B": torch.tensor([[2.5]])}, held.constants)) == 1.0  # frozen factors do not count


def test_it_is_in_the_loss_of_methods_that_ask_for_it_and_is_about_what_the_server_sent() -> None:
    assert row().penalty(ClientState("a", known=KNOWN), 10) is None
    for factors in (row().factors, ONLY_A, ONLY_B):
        method = row(alpha_f=2.0, factors=factors)
        term = method.penalty(ClientState("a", known=factors.travelling(KNOWN)), 10)
        assert term is not None
        trained = {name: t for name, t in OWN.items() if factors.trains(1, name)}
        apart = float(algebra.squared_distance(factors.travelling(trained), KNOWN))
        assert float(term.term(trained, term.constants)) == pytest.approx(apart, rel=1e-6)
