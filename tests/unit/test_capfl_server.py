"""CA-PFL's server: groups of peers, what is learnt of newcomers, and what clients are told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from capfl import adapter as algebra
from capfl.maths.fourier import frequencies
from capfl.maths.gamma import Gamma, barycentre
from capfl.methods.capfl import LEAST_SHAPE, PRIOR_MEAN
from capfl.methods.peers import fourier_of
from capfl.types import Update
from capfl_clients import START, N, adapter, fresh, kappa, posterior, told, trained_by
from fake import described, n_train

# -- the server ------------------------------------------------------------------------------------------


def update(method, memory, client, change, round=1):
    return Update(round, client, change, n_train(client), 2, 1.0, method.report(memory))


def heard(method, server, clients="abc", columns=(0.01, 0.02, 0.03, 0.04)):
    updates = []
    for at, client in enumerate(clients):
        memory = trained_by(method, server, [c * (1 + at) for c in columns], client)
        updates.append(update(method, memory, client, adapter([0.1 * (at + 1)] * N, seed=at), server.round + 1))
    return updates


def test_the_whole_is_the_weighted_mean():
    method, server = fresh()
    updates = heard(method, server)
    mean = algebra.weighted_mean((u.adapter, u.n_train) for u in updates)
    after = method.aggregate(server, updates)
    for name, t in algebra.add(server.adapter, mean).items():
        assert torch.equal(after.adapter[name], t)


def test_permuting_the_clients_changes_nothing():
    method, server = fresh()
    updates = heard(method, server)
    one, other = method.aggregate(server, updates), method.aggregate(server, updates[::-1])
    for name in one.adapter:
        torch.testing.assert_close(one.adapter[name], other.adapter[name])
    for name in ("alpha", "beta"):
        torch.testing.assert_close(one.notes[name], other.notes[name])
    assert one.group_of == other.group_of


def test_clients_with_like_data_share_a_group_and_others_stay_alone():
    method, server = fresh()
    after = method.aggregate(server, heard(method, server))
    assert after.group_of == {"a": "0000", "b": "0000", "c": "0001"}
    assert [method.brief(after, client)["peers"].tolist() for client in "abc"] == [[2.0], [2.0], [1.0]]
    assert torch.equal(after.groups["0000"].adapter["q.A"], after.adapter["q.A"])  # split off from the whole


def test_a_newcomer_joins_its_like():
    method, server = fresh()
    after = method.aggregate(server, heard(method, server, "ac"))
    assert after.group_of == {"a": "0000", "c": "0001"}
    later = method.aggregate(replace(after, round=1), heard(method, after, "b"))
    assert later.group_of == {"a": "0000", "b": "0000", "c": "0001"}
    for name in ("0000", "0001"):  # b was in no group yet, so its change went to the whole alone
        assert torch.equal(later.groups[name].adapter["q.B"], after.groups[name].adapter["q.B"])


def test_a_newcomers_first_posterior_follows_features():
    """It is the moment-matched mean of the others', by their items times z . z_k; b describes itself as a does."""
    method, server = fresh(peers="all")
    columns = {"a": [0.1, 0.03, 0.01, 0.003], "c": [0.003, 0.01, 0.03, 0.1]}
    memories = {client: trained_by(method, server, of, client) for client, of in columns.items()}
    sent = [update(method, memory, client, adapter([0.1] * N)) for client, memory in memories.items()]
    after = method.meet(method.aggregate(server, sent), "b", described("b"))
    z = {client: fourier_of(after, client, lambda d: frequencies(0, d, 256)) for client in "abc"}
    likeness = {client: float(z["b"] @ z[client]) for client in "ac"}
    assert likeness["a"] > 0.99 > 0.7 > likeness["c"] > 0
    parts = [(posterior(memories[client]), n_train(client) * likeness[client]) for client in "ac"]
    torch.testing.assert_close(kappa(told(method, after, "b")), barycentre(parts).mean(), rtol=1e-5, atol=0)


def test_features_do_not_see_the_answers():
    """What is bound to answers tells peers apart; z is of prompts alone."""
    method, server = fresh()
    server = method.aggregate(server, heard(method, server))
    other = server.notes["features/a"].clone()
    other[16:] = 7.0
    changed = replace(server, notes=server.notes | {"features/a": other})
    omega = lambda d: frequencies(0, d, 256)  # noqa: E731
    assert torch.equal(fourier_of(server, "a", omega), fourier_of(changed, "a", omega))
    other[:16] += 1.0
    assert not torch.equal(fourier_of(server, "a", omega), fourier_of(changed, "a", omega))


def test_a_group_learns_from_its_members_alone():
    method, server = fresh()
    after = replace(method.aggregate(server, heard(method, server)), round=1)
    updates = heard(method, after)
    later = method.aggregate(after, updates)
    expected = algebra.add(
        after.groups["0000"].adapter, algebra.weighted_mean((u.adapter, u.n_train) for u in updates[:2])
    )
    assert torch.equal(later.groups["0000"].adapter["v.B"], expected["v.B"])


def test_without_peers_there_is_one_adapter_for_all():
    method, server = fresh(peers="all")
    after = method.aggregate(server, heard(method, server))
    assert (after.groups, after.group_of) == ({}, {})
    assert "peers" not in method.brief(after, "a")


def test_the_prior_moves_towards_the_posteriors_and_keeps_its_shape():
    method, server = fresh(rank_floor=0.0)
    for _ in range(20):
        server = method.aggregate(server, heard(method, server, "ab", (0.001, 0.3, 0.001, 0.3)))
    mean = Gamma(server.notes["alpha"].double(), server.notes["beta"].double()).mean()
    assert mean[0] < PRIOR_MEAN < mean[1]
    assert (server.notes["alpha"] >= LEAST_SHAPE).all()


# -- peers -----------------------------------------------------------------------------------------------


def test_a_client_is_told_its_features_until_it_must_know_them():
    method, server = fresh()
    assert "z" not in method.brief(server, "a")
    after = replace(method.aggregate(server, heard(method, server)), round=1, versions={"a": 0})
    z = method.brief(after, "a")["z"]
    assert float(z.norm()) == pytest.approx(1, abs=1e-6)
    assert "z" not in method.brief(replace(after, round=2, versions={"a": 1}), "a")


def test_features_are_sent_until_they_are_answered():
    method, server = fresh()
    memory = trained_by(method, server, [0.01] * N)
    assert {"features", "deviation", "answers", "alpha", "beta"} == set(method.report(memory))
    memory = replace(memory, notes=memory.notes | {"z": torch.ones(2)})
    assert {"alpha", "beta"} == set(method.report(memory))


def test_a_client_alone_goes_on_from_its_own_adapter():
    method, server = fresh(alpha_f=1.0, rank_floor=0.0)
    memory = trained_by(method, server, [0.1, 0.2, 0.3, 0.4])
    own = memory.adapter
    alone = replace(memory, notes=memory.notes | {"peers": torch.tensor([1.0])})
    assert torch.equal(method.install(START, alone)["q.B"], own["q.B"])
    assert method.mix(alone) == 1
    assert not set(START) & set(method.penalty(START, alone).constants)  # no anchor
    together = replace(memory, notes=memory.notes | {"peers": torch.tensor([2.0])})
    assert torch.equal(method.install(START, together)["q.B"], START["q.B"])
    assert 0 < method.mix(together) < 1
