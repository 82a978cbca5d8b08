"""CA-PFL with secure aggregation: a sum for each group that the operator gives, and nothing from who is alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from capfl import adapter as algebra
from capfl.config.privacy import PrivacyConfig
from capfl.errors import ClientError, WireError
from capfl.maths.gamma import Gamma
from capfl.methods.posterior import Importance, Posterior, PosteriorMemory, PosteriorState
from capfl.packing import pack
from capfl.round import introduce
from capfl.types import ClientId, ClientState, ServerState, Update
from capfl.wire.summed import OF_RANKS
from fake import bits, initial
from masked import LYING, ON, SKIP, World, ids

A, B, ALONE = ids(8)[:3], ids(8)[3:7], "c07"
PEERS = dict.fromkeys(A, "a") | dict.fromkeys(B, "b")


def world(privacy: PrivacyConfig = ON) -> World:
    return World(8, method="ca-pfl", privacy=privacy, turns=1, peers=PEERS)


@pytest.mark.parametrize("privacy", [ON, LYING], ids=lambda given: given.secure_aggregation)
def test_each_group_has_its_own_sum_and_everybody_the_mean_of_them(privacy: PrivacyConfig) -> None:
    played = world(privacy)
    record = played.play()
    groups = played.state.groups
    changes = {name: played.plain(members, len(members)) for name, members in (("a", A), ("b", B))}
    for name, change in changes.items():
        assert bits(groups[name].adapter) == bits(algebra.add(initial(), change))
    for name, t in groups["everybody"].adapter.items():
        mean = (3 * changes["a"][name] + 4 * changes["b"][name]) / 7
        torch.testing.assert_close(t, initial()[name] + mean)
    assert record.clients == tuple(ids(8))
    assert record.groups == PEERS | {ALONE: ALONE}
    assert Counter((e.client, e.direction, e.bytes) for e in record.ledger) == Counter(played.crossed)


def test_who_is_alone_says_that_it_has_trained_and_nothing_else() -> None:
    """Neither keys nor numbers, whatever the server asks it for."""
    played = world()
    record = played.play()
    assert {kind for kind, client in played.requests if client == ALONE} == {"train"}
    reply = played.replies["train", ALONE]
    assert len(reply) < 50
    assert reply[20:36] == bytes(16)  # items, steps and loss
    assert played.memory[ALONE].steps == 2
    assert bits(played.state.groups[ALONE].adapter) == bits(initial())
    assert ALONE not in record.losses
    assert ALONE in played.state.visits
    second = played.play()
    assert ALONE in second.clients
    trained = played.memory[ALONE].adapter
    assert bits(trained) != bits(initial())  # it goes on from its own


def test_nobody_says_what_its_data_are_like() -> None:
    played = world()
    played.play()
    assert not any(kind == "introduce" for kind, _ in played.requests)
    with pytest.raises(WireError, match="do not say here what their data are like"):
        played.answer("introduce", "c00", played.requests["keys", "c00"])
    state, talk = introduce(played.state, [], played.agreement, played.exchange, SKIP)
    assert (state, talk.ledger) == (played.state, [])


def test_a_group_that_loses_its_sum_takes_none_with_it() -> None:
    played = world()
    played.drop("train", "c01")
    record = played.play()
    assert record.clients == (*B, ALONE)
    assert {failure.client for failure in record.failures} == set(A)
    assert bits(played.state.groups["a"].adapter) == bits(initial())
    assert bits(played.state.groups["b"].adapter) == bits(algebra.add(initial(), played.plain(B, 4)))
    played = world()
    before = pack(played.state)
    played.drop("train", "c01", "c03", "c04")
    with pytest.raises(ClientError, match="there is no sum of updates"):
        played.play()
    assert pack(played.state) == before


# -- the ranks' posteriors ---------------------------------------------------------------------------------------------

RANKS = Posterior()
PRIOR = Importance.of(Gamma(torch.full((4,), 2.0).double(), torch.full((4,), 200.0).double()))


def posteriors(n: int = 3) -> dict[ClientId, Importance]:
    generator = torch.Generator().manual_seed(1)
    alpha, mean = (1 + torch.rand(2, n, 4, generator=generator)).double()
    return {client: Importance.of(Gamma(2 * alpha[i], 200 * alpha[i] / mean[i])) for i, client in enumerate(ids(n))}


def mean_of(said: dict[ClientId, Importance]) -> np.ndarray:
    """As it comes out of a sum."""
    numbers = [RANKS.to_sum(ClientState(c, ranks=PosteriorMemory(PRIOR, own))) for c, own in said.items()]
    assert all((own >= 0).all() for own in numbers)
    return np.mean([np.rint(own / OF_RANKS) * OF_RANKS for own in numbers], axis=0)


def test_sums_tell_the_server_the_prior_that_the_posteriors_would() -> None:
    said, state = posteriors(), ServerState(0, {}, ranks=PosteriorState(PRIOR, {}))
    updates = {client: Update(1, client, {}, 10, 1, 0.0, own) for client, own in said.items()}
    seen, summed = RANKS.combine(state, updates).prior, RANKS.combine_mean(state, mean_of(said)).prior
    for name in ("alpha", "beta"):
        torch.testing.assert_close(getattr(summed, name), getattr(seen, name), rtol=1 / 8, atol=0)  # three bits
    assert not torch.equal(summed.alpha, PRIOR.alpha)
    assert RANKS.combine_mean(state, mean_of(said)).clients == {}


def test_one_posterior_moves_the_prior_no_farther_than_its_bounds() -> None:
    wild = Importance.of(Gamma(torch.full((4,), 1e5).double(), torch.full((4,), 1e-3).double()))
    ratio = RANKS.to_sum(ClientState("c00", ranks=PosteriorMemory(PRIOR, wild)))[:4]
    assert ratio.tolist() == [16.0] * 4


@pytest.mark.parametrize("wrong", [(17.0, 0.0), (0.01, 9.0), (1.0, 2.0)])
def test_a_mean_that_no_posteriors_have_is_refused(wrong: tuple[float, float]) -> None:
    """The mean of logarithms is below the logarithm of the mean: ln 16 is 2.77."""
    good = mean_of(posteriors())
    RANKS.check_mean(good)
    bad = good.copy()
    bad[0], bad[4] = wrong
    with pytest.raises(WireError, match="none of posteriors"):
        RANKS.check_mean(bad)


def test_a_group_whose_sum_says_of_its_ranks_what_cannot_be_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lies moves its group's numbers; they are looked at before anything is folded."""
    played, honest = world(), Posterior.to_sum

    def said(self: Posterior, memory: ClientState) -> np.ndarray:
        return honest(self, memory) + (100.0 if memory.client == "c01" else 0.0)

    monkeypatch.setattr(Posterior, "to_sum", said)
    record = played.play()
    assert record.clients == (*B, ALONE)
    assert {failure.reason for failure in record.failures} == {
        "the sum of what clients say of their ranks is none of posteriors"
    }


@pytest.mark.usefixtures("whole_fits")
def test_the_prior_that_clients_are_told_follows_from_their_sums() -> None:
    played = world()
    before = played.state.ranks.prior  # type: ignore[union-attr]
    played.play()
    after = played.state.ranks  # type: ignore[union-attr]
    assert not torch.equal(after.prior.alpha, before.alpha)
    assert after.clients == {}
    played.play()
    told = played.memory["c00"].ranks
    assert torch.equal(told.prior.alpha, after.prior.alpha)  # type: ignore[union-attr]
