"""Ranks by a variational posterior: on four ranks, by hand and in whole rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import capfl.methods.posterior as module
from adapters import same
from attacks import forged
from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.maths import modulator
from capfl.maths.gamma import barycentre, moved
from capfl.methods.peers import Peers, PeersMemory
from capfl.methods.posterior import (
    DELTA,
    LEAST_SHAPE,
    PRIOR_MEAN,
    PRIOR_SHAPE,
    Importance,
    Posterior,
    PosteriorMemory,
    PosteriorState,
    Prior,
)
from capfl.types import ClientState, Trained, Update
from capfl.wire.message import INTRODUCTION
from parts import CLIENTS, INITIAL, Federation, N, row, update

pytestmark = pytest.mark.usefixtures("whole_fits")

RANKS = Posterior()
START = row(ranks=RANKS).start(INITIAL, CLIENTS)
PRIOR: Importance = START.ranks.prior  # type: ignore[union-attr]
FELT = [0.001, 0.01, 0.03, 0.1]
Z = torch.nn.functional.normalize(torch.arange(256.0), dim=0)


def importance(*means: float, shape: float = 2.0) -> Importance:
    return Importance(torch.full((len(means),), shape), shape / torch.tensor(means))


def client(posterior: Importance = PRIOR, n_peers: int = 2, z: torch.Tensor | None = None) -> ClientState:
    grouping = PeersMemory(z, n_peers)
    return ClientState("a", known=INITIAL, grouping=grouping, ranks=PosteriorMemory(PRIOR, posterior))


def trained(felt: list[float], columns: float = 0.1) -> Trained:
    """Training that leaves such columns of B, and a loss that has felt the ranks so."""
    ups = {name: torch.full_like(t, columns) for name, t in algebra.factor(INITIAL, "B").items()}
    return Trained(INITIAL | ups, (1.0,), torch.tensor(felt))


def learnt(
    felt: list[float], rounds: int = 1, ranks: Posterior = RANKS, memory: ClientState | None = None
) -> ClientState:
    memory = memory or client()
    for _ in range(rounds):
        memory = replace(memory, ranks=ranks.learn(trained(felt), memory, 10))
    return memory


def kept(memory: ClientState) -> PosteriorMemory:
    assert isinstance(memory.ranks, PosteriorMemory)
    return memory.ranks


def kappa(memory: ClientState) -> torch.Tensor:
    return kept(memory).posterior.mean


def said(client: str, posterior: Importance | None) -> Update:
    return update(client, ranks=posterior)


def prior_of(state: object) -> Importance:
    assert isinstance(state, PosteriorState)
    return state.prior


# -- what a client learns ----------------------------------------------------------------------------------------


def test_importance_follows_what_the_loss_feels_more_with_every_round() -> None:
    one, three = kappa(learnt(FELT)), kappa(learnt(FELT, rounds=3))
    assert (one.diff() > 0).all()
    assert (three[3] / three[0]) > (one[3] / one[0])


def test_evidence_by_hand() -> None:
    """In units that keep the mean of h; a third of it is news, in log space; what was not felt at all is a little."""
    h = 0.1 - DELTA / 2
    scale = h / (sum(FELT) / N)
    first = kept(learnt(FELT)).evidence
    expected = [PRIOR_MEAN * (scale * x / PRIOR_MEAN) ** (1 / 3) for x in FELT]
    torch.testing.assert_close(first, torch.tensor(expected), rtol=1e-5, atol=0)
    second = kept(learnt(FELT, rounds=2)).evidence
    torch.testing.assert_close(
        (second / PRIOR_MEAN).log(), (first / PRIOR_MEAN).log() * (1 + 2 / 3), rtol=1e-4, atol=1e-6
    )
    least = kept(learnt([0.0, 0.1, 0.1, 0.1])).evidence[0].item()
    assert least == pytest.approx(PRIOR_MEAN * (module.UNFELT * h / PRIOR_MEAN) ** (1 / 3), rel=1e-5)


def test_training_that_felt_nothing_says_nothing() -> None:
    """A single step from B = 0 feels no rank at all."""
    memory = learnt([0.0] * N)
    assert torch.equal(kept(memory).evidence, PRIOR.mean.float())
    assert len(set(kappa(memory).tolist())) == 1
    assert RANKS.in_own_model(memory.ranks).all()


def test_without_weight_the_posterior_is_the_prior() -> None:
    memory = learnt(FELT, rounds=2, ranks=Posterior(alpha_s=0.0))
    assert kept(memory).posterior is kept(memory).prior is PRIOR
    assert kept(memory).modulator is None


def test_the_modulator_learns_and_maps_features_to_the_posterior() -> None:
    once, twice = (kept(learnt(FELT, rounds, memory=client(z=Z))).modulator for rounds in (1, 2))
    assert once is not None and twice is not None  # noqa: PT018
    start = modulator.init(0, 256, 16, N)
    for name in ("down", "up"):
        first, then = getattr(once, name), getattr(twice, name)
        assert (first - getattr(start, name)).abs().max() > 0.01
        assert not torch.equal(first, then)
    assert not torch.equal(kappa(learnt(FELT, memory=client(z=Z))), kappa(learnt(FELT, memory=client(z=Z.flip(0)))))


def test_a_client_that_is_told_its_features_begins_with_a_new_modulator() -> None:
    """The one from before has other shapes. Its width may be one, as that of a client without features."""
    ranks = Posterior(hidden=1)
    memory = learnt(FELT, ranks=ranks)
    assert kept(memory).modulator.down.shape == (1, 1)  # type: ignore[union-attr]
    told = replace(memory, grouping=PeersMemory(Z, 2))
    assert kept(learnt(FELT, ranks=ranks, memory=told)).modulator.down.shape == (1, 256)  # type: ignore[union-attr]


# -- what follows a step -----------------------------------------------------------------------------------------


def test_a_column_is_shortened_by_its_importance_and_nothing_else_moves() -> None:
    """By hand: w = alpha_s / n E[1 / kappa]; the norms of columns move by rate w huber'; then comes the pull."""
    method = row(ranks=Posterior(alpha_s=0.3), grouping=Peers())
    memory = client(importance(0.01, 0.02, 0.04, 0.05))
    columns = torch.tensor([0.005, 0.02, 0.03, 0.1])
    signs = torch.tensor([1.0, -1.0]).repeat(10)[:, None]
    now = INITIAL | {f"{m}.B": signs * columns[2 * k : 2 * k + 2] for k, m in enumerate("qv")}
    held = method.penalty(memory, 10)
    assert held is not None
    found = held.step(now, held.constants, 1e-3)
    # 1e-3 · 0.3 / 10 · beta / (alpha - 1), with alpha = 2: 0.006, 0.003, 0.0015, 0.0012
    expected = torch.tensor([0.005 / 1.6, 0.02 - 0.003, 0.03 - 0.0015, 0.1 - 0.0012])
    for k, m in enumerate("qv"):
        torch.testing.assert_close(found[f"{m}.B"], signs * expected[2 * k : 2 * k + 2])
        assert torch.equal(found[f"{m}.A"], INITIAL[f"{m}.A"])
    both = replace(method, alpha_f=0.7).penalty(memory, 10)
    assert both is not None
    for name, t in both.step(now, both.constants, 1e-3).items():
        torch.testing.assert_close(t, INITIAL[name] + (found[name] - INITIAL[name]) / 1.0007)


def test_a_client_with_few_items_is_regularised_more_and_one_without_peers_not_at_all() -> None:
    method = row(ranks=RANKS, grouping=Peers())
    few, many = (method.penalty(client(), n) for n in (10, 30))
    assert few is not None and many is not None  # noqa: PT018
    now = {name: torch.ones_like(t) for name, t in INITIAL.items()}
    less = [1 - held.step(now, held.constants, 1.0)["q.B"] for held in (few, many)]
    torch.testing.assert_close(less[0], 3 * less[1], rtol=1e-3, atol=0)
    downs = algebra.factor(INITIAL, "A")  # while A alone is trained, it is about nothing
    assert same(few.step(downs, few.constants, 1.0), downs)
    assert method.penalty(client(n_peers=1), 10) is None
    assert method.penalty(client(n_peers=0), 10) is None


def test_whatever_the_weight_no_column_changes_its_sign_or_grows() -> None:
    held = row(ranks=Posterior(alpha_s=1e9), grouping=Peers()).penalty(client(), 1)
    assert held is not None
    now = {name: torch.randn(t.shape) for name, t in INITIAL.items()}
    for name, t in held.step(now, held.constants, 1.0).items():
        assert (t * now[name] >= 0).all()
        assert (t.abs() <= now[name].abs()).all()


# -- ranks of a client's own model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("floor", "means", "has"),
    [
        (0.5, (0.001, 0.02, 0.02, 0.009), [False, True, True, True]),  # the mean is 0.0125
        (100.0, (0.01, 0.04, 0.02, 0.02), [False, True, False, False]),  # the most important is always there
        (0.0, (1e-9, 0.04, 0.02, 0.02), [True] * N),
    ],
)
def test_a_rank_below_the_floor_is_missing_from_the_clients_own_model_alone(
    floor: float, means: tuple[float, ...], has: list[bool]
) -> None:
    method = row(ranks=Posterior(floor=floor), grouping=Peers())
    memory = client(importance(*means))
    for record in (memory.ranks, kept(memory).posterior):  # what a client keeps, and what it says
        assert method.ranks.in_own_model(record).tolist() == has
    own = method.without_unused_ranks(INITIAL, memory)
    for at, there in enumerate(has):
        m, r = "qv"[at // 2], at % 2
        assert bool(own[f"{m}.A"][r].any()) == bool(own[f"{m}.B"][:, r].any()) == there
    assert method.starting_point(memory, INITIAL).keys() == INITIAL.keys()
    assert all(torch.equal(t, INITIAL[name]) for name, t in method.starting_point(memory, INITIAL).items())


# -- messages ----------------------------------------------------------------------------------------------------


def test_all_clients_and_the_server_share_a_budget_by_the_prior() -> None:
    a, b = learnt(FELT), learnt(FELT[::-1])
    server = PosteriorState(PRIOR, {"a": kept(a).posterior})
    found = [RANKS.importance(keeper) for keeper in (a.ranks, b.ranks, server)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    far = PosteriorState(importance(1e-6, 0.01, 0.01, 1.0), {})
    assert RANKS.importance(far).tolist() == [0.5, 0.5, 0.5, 2.0]  # none is sent much more or less than others


@pytest.mark.parametrize("floor", [0.0, 0.9])
def test_a_message_has_exactly_its_budget_of_values(floor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIT_STEPS", 5)
    played = Federation(row(grouping=Peers(), ranks=Posterior(floor=floor)), "default")  # which sends a third
    for _ in range(4):
        record = played.rounds(1)
        for arrived in played.arrived().values():
            assert sum(int(t.count_nonzero()) for t in arrived.values()) == algebra.size(INITIAL) // 5
    assert (min(record.ranks["a"]) < 2) == (floor > 0)
    assert record.kappa["a"][0] < record.kappa["a"][1]


# -- the server --------------------------------------------------------------------------------------------------


def test_the_prior_moves_halfway_towards_the_mean_of_the_posteriors() -> None:
    posteriors = {"a": importance(0.02, 0.01, 0.005, 0.01, shape=3.0), "b": importance(0.04, 0.01, 0.02, 0.01)}
    after = RANKS.combine(START, {client: said(client, own) for client, own in posteriors.items()})
    mean = barycentre([(posteriors["a"].gamma, 10.0), (posteriors["b"].gamma, 20.0)])
    expected = moved(PRIOR.gamma, mean, 0.5)
    torch.testing.assert_close(prior_of(after).mean, expected.mean(), rtol=0.1, atol=0)  # what a message can say
    assert (prior_of(after).alpha >= LEAST_SHAPE).all()
    assert dict(after.clients) == posteriors
    later = RANKS.combine(replace(START, ranks=after), {"a": said("a", PRIOR)})
    assert dict(later.clients) == posteriors | {"a": PRIOR}
    assert RANKS.combine(START, {}) is START.ranks
    told = RANKS.announce(replace(START, ranks=after), "a")
    assert (told.alpha, told.beta) == (prior_of(after).alpha, prior_of(after).beta)


def test_a_newcomer_begins_with_the_posterior_of_those_like_it() -> None:
    posteriors = {"a": importance(0.1, 0.03, 0.01, 0.003), "c": importance(0.003, 0.01, 0.03, 0.1)}
    state = replace(START, ranks=PosteriorState(PRIOR, posteriors), visits={"a": 1, "c": 1})
    welcomed = replace(state, ranks=RANKS.welcome(state, "b", {"a": 9.0, "c": 1.0}))
    memory = ClientState("b", ranks=RANKS.remember(RANKS.announce(welcomed, "b"), ClientState("b")))
    expected = barycentre([(posteriors["a"].gamma, 9.0), (posteriors["c"].gamma, 1.0)])
    torch.testing.assert_close(kappa(memory), expected.mean(), rtol=1e-5, atol=0)
    assert RANKS.welcome(state, "b", {}).clients["b"] is PRIOR  # like nobody
    for client in ("a", "c"):  # they know their own
        assert RANKS.announce(welcomed, client).own_alpha is None
    again = RANKS.remember(Prior(PRIOR.alpha, PRIOR.beta), replace(memory, ranks=kept(learnt(FELT))))
    assert again.posterior is not again.prior


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (None, "update has no posterior"),
        (importance(0.01, 0.01, 0.01), r"Importance\.alpha has 3 numbers, the adapter has 4 ranks"),
        (Importance(PRIOR.alpha, PRIOR.beta[:3]), r"Importance\.beta has 3 numbers"),
        (importance(*[0.01] * N, shape=3e6), "posterior's shape is not within a factor of 1e"),
        (importance(0.01, 0.01, 0.01, 2e4), "posterior's mean is not within a factor of 1e"),
        (importance(0.01, 0.01, 0.01, 5e-9), "posterior's mean is not within a factor of 1e"),
    ],
)
def test_posteriors_that_cannot_be_are_refused(lie: Importance | None, reason: str) -> None:
    far = replace(START, ranks=PosteriorState(importance(*[1e5] * N, shape=1e8), {}))
    for state in (START, far):  # what others say of the prior moves nobody's bounds
        RANKS.check(state, said("a", importance(*FELT)))
        with pytest.raises(WireError, match=reason):
            RANKS.check(state, said("a", lie))


def test_a_rank_that_is_never_felt_does_not_make_an_honest_report_impossible() -> None:
    memory, state = client(), START
    for _ in range(12):
        memory = replace(memory, ranks=RANKS.remember(RANKS.announce(state, "a"), memory))
        memory = learnt([0.0, 0.02, 0.03, 0.1], memory=memory)
        report = said("a", RANKS.report(memory))
        RANKS.check(state, report)
        state = replace(state, ranks=RANKS.combine(state, {"a": report}), visits={"a": 1})
    assert kappa(memory)[0] < 0.1 * kappa(memory)[1:].min()


@pytest.mark.parametrize("shape", [1.0, pytest.param(1e5, marks=pytest.mark.slow)])
def test_a_client_that_lies_about_importance_locks_nobody_out(shape: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of six says, each round, a mean of 9e5 times the prior's, or the largest that is let in; then it leaves."""
    monkeypatch.setattr(module, "FIT_STEPS", 20)

    method, six = row(grouping=Peers(dim=8), ranks=Posterior(hidden=2)), tuple("abcdef")
    lied, honest = Federation(method, clients=six), Federation(method, clients=six)

    def lie(reply: bytes) -> bytes:
        if reply[5] == INTRODUCTION:
            return reply
        prior = prior_of(lied.state.ranks)
        alpha = (shape * prior.alpha).clamp_max(9e5 * PRIOR_SHAPE)
        mean = torch.minimum(9e5 * prior.mean, torch.tensor(9e5 * PRIOR_MEAN))
        return forged(reply, lied.agreement, ranks=Importance(alpha, (alpha / mean).float()))

    lied.forged["b"] = lie
    for _ in range(4):
        record = lied.rounds(1)
        honest.rounds(1)
        assert {failure.client for failure in record.failures} <= {"b"}
    lied.clients = tuple("acdef")
    assert lied.rounds(1).clients == lied.clients
    apart = prior_of(lied.state.ranks).mean / prior_of(honest.state.ranks).mean
    assert (apart < 10).all()
    assert (apart > 0.1).all()
