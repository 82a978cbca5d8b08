"""CA-PFL's own functions: exact on tiny adapters, and the invariants that the published code breaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from capfl import adapter as algebra
from capfl.config.schema import MethodConfig
from capfl.maths import modulator
from capfl.maths.huber import huber
from capfl.methods import METHODS, build
from capfl.methods.capfl import DELTA, PRIOR_MEAN, PRIOR_SHAPE, Settings
from capfl.types import ClientState, ServerState, Trained, Update
from capfl_clients import START, N, adapter, felt, fresh, kappa, posterior, told, trained_by
from fake import n_train

# -- posteriors ------------------------------------------------------------------------------------------


def test_the_first_posterior_is_the_prior():
    method, server = fresh()
    memory = told(method, server)
    assert kappa(memory).tolist() == pytest.approx([PRIOR_MEAN] * N)
    assert server.notes["alpha"].tolist() == [PRIOR_SHAPE] * N


@pytest.mark.parametrize("variant", ["modulated", "free", "ard"])
def test_importance_follows_the_columns(variant):
    method, server = fresh(kappa=variant, rank_floor=0.0)
    found = kappa(trained_by(method, server, [0.001, 0.01, 0.03, 0.1], rounds=3))
    assert (found.diff() > 0).all()


def test_importance_follows_what_the_loss_feels_and_not_the_columns():
    for evidence, first in (("sensitivity", 3), ("norm", 0)):
        method, server = fresh(evidence=evidence, rank_floor=0.0)
        memory = told(method, server)
        trained = Trained(adapter([0.4, 0.2, 0.1, 0.05]), (1.0,), torch.tensor([0.1, 0.2, 0.4, 0.8]))
        _, memory = method.collect(START, trained, memory)
        assert int(kappa(memory).argmax()) == first


def test_training_that_feels_nothing_leaves_ranks_alike():
    method, server = fresh()
    memory = told(method, server)
    _, memory = method.collect(START, Trained(adapter([0.0] * N), (1.0,), torch.zeros(N)), memory)
    assert kappa(memory).isfinite().all()
    assert len(set(kappa(memory).tolist())) == 1


def test_evidence_adds_up_over_rounds():
    """A third of it is news, in log space."""
    method, server = fresh()
    columns = [0.004, 0.01, 0.03, 0.1]
    first = trained_by(method, server, columns)
    second = trained_by(method, server, columns, rounds=2)
    one = (first.notes["evidence"].double() / PRIOR_MEAN).log()
    two = (second.notes["evidence"].double() / PRIOR_MEAN).log()
    torch.testing.assert_close(two, one * (1 + 2 / 3), rtol=1e-5, atol=1e-6)


def test_without_weight_the_posterior_is_the_prior():
    method, server = fresh(alpha_s=0.0)
    memory = trained_by(method, server, [0.001, 0.01, 0.03, 0.1], rounds=3)
    assert memory.notes["alpha"].tolist() == server.notes["alpha"].tolist()
    assert memory.notes["beta"].tolist() == server.notes["beta"].tolist()
    assert method.alive(memory.notes).all()


Z = torch.nn.functional.normalize(torch.arange(256.0), dim=0)


def fitted(z, columns, rounds=1, **settings):
    """Notes of a client that has been told its features and fits its posterior in so many rounds."""
    method, server = fresh(**settings)
    memory = told(method, server)
    memory = replace(memory, notes=memory.notes | {"z": z})
    for _ in range(rounds):
        _, memory = method.collect(adapter(columns), felt(columns), memory)
    return memory.notes


def test_the_modulator_has_a_gradient_and_moves():
    columns = [0.001, 0.01, 0.03, 0.1]
    start = modulator.init(0, 256, 16, N)
    once, twice = (fitted(Z, columns, rounds) for rounds in (1, 2))
    assert once["down"].numel() == 256 * 16
    for name, first in (("down", start.down), ("up", start.up)):
        assert (once[name].reshape(first.shape) - first).abs().max() > 0.01
        assert not torch.equal(once[name], twice[name])


def test_the_modulator_maps_features_to_the_posterior():
    columns = [0.001, 0.01, 0.03, 0.1]
    assert not torch.equal(fitted(Z, columns)["alpha"], fitted(Z.flip(0), columns)["alpha"])
    free, other = (fitted(z, columns, kappa="free") for z in (Z, Z.flip(0)))
    assert torch.equal(free["alpha"], other["alpha"])


def test_a_modulator_may_be_one_unit_wide():
    """And is not taken for the one without features that a client has before it is told its own."""
    method, server = fresh(mlp_hidden_dim=1)
    memory = trained_by(method, server, [0.01, 0.02, 0.03, 0.1])
    memory = replace(memory, notes=memory.notes | {"z": Z})
    _, memory = method.collect(START, felt([0.01, 0.02, 0.03, 0.1]), memory)
    assert (memory.notes["down"].numel(), memory.notes["up"].numel()) == (256, 2 * N)


def test_training_that_felt_nothing_says_nothing():
    """A single step from B = 0 feels no rank at all."""
    method, server = fresh()
    memory = told(method, server)
    nothing = Trained(adapter([0.001] * N), (1.0,), torch.zeros(N))
    _, after = method.collect(START, nothing, memory)
    assert torch.equal(after.notes["evidence"].double(), posterior(memory).mean().float().double())
    assert method.alive(after.notes).all()


@pytest.mark.parametrize("evidence", ["sensitivity", "norm"])
def test_a_rank_that_is_never_felt_does_not_make_an_honest_report_impossible(evidence):
    method, server = fresh(evidence=evidence)
    memory = None
    for round in range(1, 21):
        memory = told(method, server, "a", memory)
        _, memory = method.collect(START, felt([0.0, 0.02, 0.03, 0.1]), memory)
        update = Update(round, "a", START, n_train("a"), 1, 1.0, method.report(memory))
        method.inspect(server, update)
        server = replace(method.aggregate(server, [update]), round=round)
    assert kappa(memory)[0] < 0.1 * kappa(memory)[1:].min()
    assert not method.alive(memory.notes)[0]


def test_clients_that_differ_have_posteriors_that_differ():
    method, server = fresh()
    a, b = (trained_by(method, server, c) for c in ([0.001, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.001]))
    assert kappa(a)[0] < kappa(b)[0]
    assert kappa(a)[3] > kappa(b)[3]


def test_random_ranks_are_the_same_numbers_in_another_order():
    columns = [0.001, 0.01, 0.03, 0.1]
    true, shuffled = (kappa(trained_by(method, server, columns)) for method, server in (fresh(), fresh(kappa="random")))
    assert not torch.equal(true, shuffled)
    np.testing.assert_allclose(np.sort(true), np.sort(shuffled), rtol=1e-6)


def test_without_the_divergence_the_posterior_goes_further():
    columns = [0.0001, 0.1, 0.1, 0.1]
    bound, loose = (kappa(trained_by(*fresh(alpha_p=p), columns, rounds=5)) for p in (1.0, 0.0))
    assert loose[0] < bound[0]
    assert loose[1] > bound[1]


# -- ranks -----------------------------------------------------------------------------------------------


def with_kappa(memory, values):
    alpha = torch.full((N,), 2.0)
    return replace(memory, notes=memory.notes | {"alpha": alpha, "beta": alpha / torch.tensor(values)})


def test_a_rank_below_the_floor_is_dropped_whole():
    method, server = fresh(rank_floor=0.5)
    memory = with_kappa(told(method, server), [0.001, 0.02, 0.02, 0.009])  # mean 0.0125, floor 0.00625
    assert method.install(START, memory) is START, "it trains with what its peers have made of the rank"
    start = method.settle(START, memory)
    assert not start["q.A"][0].any()
    assert not start["q.B"][:, 0].any()
    for name, at in (("q.A", 1), ("v.A", slice(None))):
        assert torch.equal(start[name][at], START[name][at])
    assert torch.equal(start["v.B"], START["v.B"])
    assert method.alive(memory.notes).tolist() == [False, True, True, True]
    assert START["q.A"][0].any(), "the received adapter was changed in place"
    assert algebra.ranks(algebra.pruned(start)) == {"q": 1, "v": 2}


def test_the_most_important_rank_is_never_dropped():
    method, server = fresh(rank_floor=100.0)
    memory = with_kappa(told(method, server), [0.01, 0.04, 0.02, 0.02])
    assert method.alive(memory.notes).tolist() == [False, True, False, False]


def test_a_dropped_rank_comes_back_when_the_loss_feels_it():
    method, server = fresh(rank_floor=0.5)
    memory = with_kappa(told(method, server), [0.0001, 0.02, 0.02, 0.02])
    assert not method.alive(memory.notes)[0]
    for _ in range(6):
        memory = told(method, server, memory=memory)
        start = method.install(server.adapter, memory)
        _, memory = method.collect(start, Trained(start, (1.0,), torch.ones(N)), memory)
    assert method.alive(memory.notes)[0]


def test_peers_hear_of_a_rank_that_its_own_model_does_without():
    method, server = fresh(rank_floor=0.5)
    memory = with_kappa(told(method, server), [0.001, 0.02, 0.02, 0.02])
    change, _ = method.collect(START, Trained(adapter([1.0] * N, seed=1), (1.0,), torch.ones(N)), memory)
    assert not method.alive(memory.notes)[0]
    assert change["q.A"][0].any()
    assert change["q.B"][:, 0].all()


def test_peers_share_a_budget_by_the_prior():
    method, server = fresh()
    a, b = (trained_by(method, server, c) for c in ([0.001, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.001]))
    of = [method.importance(notes) for notes in (a.notes, b.notes, server.notes)]
    for other in of[1:]:
        torch.testing.assert_close(of[0], other)


def test_no_rank_is_sent_much_more_or_less_than_others():
    method, server = fresh()
    server = replace(server, notes=server.notes | {"beta": 2 / torch.tensor([1e-6, 0.01, 0.01, 1.0])})
    assert method.importance(server.notes).tolist() == [0.5, 0.5, 0.5, 2.0]


def test_a_uniform_budget_has_no_ranks():
    method, server = fresh(budget="uniform", rank_floor=100.0)
    memory = trained_by(method, server, [0.001, 0.1, 0.1, 0.1])
    assert method.importance(memory.notes) is None
    assert method.alive(memory.notes).all()
    assert all(torch.equal(t, START[name]) for name, t in method.settle(START, memory).items())


# -- the loss --------------------------------------------------------------------------------------------


def with_peers(memory, count=2):
    return replace(memory, notes=memory.notes | {"peers": torch.tensor([float(count)])})


@pytest.mark.parametrize(("peers", "count", "free"), [
    ("features", 0, True), ("features", 1, True), ("features", 2, False), ("all", 0, False),
])  # fmt: skip
def test_without_peers_the_loss_is_the_tasks_alone(peers, count, free):
    method, server = fresh(alpha_s=0.3, alpha_f=0.7, peers=peers)
    memory = told(method, server)
    found = method.penalty(START, with_peers(memory, count) if count else memory)
    assert (float(found.term(adapter([0.1] * N), found.constants)) == 0) is free


def test_the_penalty_is_what_the_equations_say():
    method, server = fresh(alpha_s=0.3, alpha_f=0.7)
    memory = with_kappa(told(method, server), [0.01, 0.02, 0.04, 0.05])
    now = adapter([0.005, 0.02, 0.03, 0.1], seed=1)
    found = method.penalty(START, with_peers(memory))
    h = huber(torch.tensor([0.005, 0.02, 0.03, 0.1]), DELTA)
    inverse = 2 / torch.tensor([0.01, 0.02, 0.04, 0.05])  # beta / (alpha - 1) with alpha = 2
    expected = 0.3 / n_train("a") * float((inverse * h).sum()) + 0.7 / 2 * float(algebra.squared_distance(now, START))
    assert float(found.term(now, found.constants)) == pytest.approx(expected, rel=1e-5)


def test_a_client_with_few_items_is_regularised_more():
    method, server = fresh()
    few, many = (method.penalty(START, with_peers(told(method, server, client))) for client in "ac")  # 10, 30 items
    ratio = few.term(START, few.constants) / many.term(START, many.constants)
    assert float(ratio) == pytest.approx(n_train("c") / n_train("a"), rel=1e-5)


def test_the_regulariser_reaches_the_factors():
    method, server = fresh()
    found = method.penalty(START, with_peers(told(method, server)))
    now = {name: t.clone().requires_grad_() for name, t in START.items()}
    found.term(now, found.constants).backward()
    assert now["q.B"].grad.abs().min() > 0
    assert now["q.A"].grad is None


# -- settings --------------------------------------------------------------------------------------------


def test_every_setting_has_a_key():
    assert set(Settings.names()) == set(METHODS["ca-pfl"].settings) <= set(MethodConfig.model_fields)
    method = build(MethodConfig(name="ca-pfl", alpha_s=0.0, alpha_f=0.0))
    server = method.init_server(START)
    found = method.penalty(START, with_peers(told(method, server)))
    assert float(found.term(START, found.constants)) == 0


def test_a_state_without_notes_is_told_the_whole():
    method, server = fresh()
    assert isinstance(server, ServerState)
    assert method.init_client("a", START) == ClientState("a", adapter=START)
