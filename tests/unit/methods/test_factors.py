"""What is trained, what travels, and what stays with the client."""

from __future__ import annotations

import pytest
import torch

from adapters import same
from capfl import adapter as algebra
from capfl.methods.factors import ALTERNATING, BOTH, NOTHING, ONLY_A, ONLY_B, Factors
from capfl.types import ClientState, Trained
from fake import n_train, steps
from parts import INITIAL, Federation, row

A, B = ["q.A", "v.A"], ["q.B", "v.B"]
TRAINED = algebra.add(INITIAL, steps("a", 1))


@pytest.mark.parametrize(
    ("factors", "trained", "sent", "travelling", "kept", "whole"),
    [
        (BOTH, [{*A, *B}] * 2, [{*A, *B}] * 2, {*A, *B}, set(), True),
        (ONLY_A, [{*A, *B}] * 2, [set(A)] * 2, set(A), set(B), False),
        (ONLY_B, [set(B)] * 2, [set(B)] * 2, set(B), set(A), True),
        (ALTERNATING, [set(B), set(A)], [set(B), set(A)], {*A, *B}, set(), True),
        (NOTHING, [{*A, *B}] * 2, [set()] * 2, set(), {*A, *B}, False),
    ],
)
def test_a_table_of_the_factors(factors: Factors, trained, sent, travelling, kept, whole) -> None:  # type: ignore[no-untyped-def]
    method = row(factors=factors)
    for round in (1, 2, 3, 4):
        at = (round - 1) % 2
        assert {name for name in INITIAL if factors.trains(round, name)} == trained[at]
        change = method.change(INITIAL, Trained(TRAINED, (1.0,)), round)
        assert set(change) == sent[at]
        assert all(torch.equal(t, TRAINED[name] - INITIAL[name]) for name, t in change.items())
    assert set(factors.travelling(INITIAL)) == travelling == set(method.start(INITIAL).everybody.known)
    assert set(method.keeps(Trained(TRAINED, (1.0,)), ClientState("a"))) == kept
    assert factors.whole == method.has_server_model == whole


def test_a_patch_of_the_base_travels_with_both_factors_and_is_never_sent_up() -> None:
    patched = INITIAL | algebra.blank(INITIAL)
    assert "q.W" in BOTH.travelling(patched)
    assert not any("q.W" in factors.travelling(patched) for factors in (ONLY_A, ONLY_B, NOTHING))
    assert "q.W" not in row().change(patched, Trained(patched, (1.0,)), 1)


def test_training_starts_from_what_the_server_says_and_for_the_rest_from_the_clients_own() -> None:
    own, known = algebra.factor(TRAINED, "B"), algebra.factor(steps("b", 1), "A")
    start = row(factors=ONLY_A).starting_point(ClientState("a", known=known, adapter=own), INITIAL)
    assert same(start, {name: (known | own)[name] for name in INITIAL})
    assert same(row(factors=ONLY_B).starting_point(ClientState("a", known=own), INITIAL), INITIAL | own)


def test_rounds_move_what_travels_and_nothing_else() -> None:
    for factors, moved in ((ONLY_A, A), (ONLY_B, B), (NOTHING, [])):
        played = Federation(row(factors=factors))
        played.rounds(2)
        adapter = played.state.everybody.adapter
        assert [name for name in INITIAL if not torch.equal(adapter[name], INITIAL[name])] == sorted(moved)
    alone = algebra.add(algebra.add(INITIAL, steps("a", 1)), steps("a", 2))
    assert same(played.memory("a").adapter, alone)
    assert played.state.visits == {"a": 2, "b": 2, "c": 2}  # every reply is used, though it has no tensor


def test_the_mean_of_products_is_the_product_of_means_where_one_factor_stands_still() -> None:
    for factors in (ALTERNATING, ONLY_B):
        played = Federation(row(factors=factors))
        for _ in range(3):
            before = played.state.everybody.adapter
            played.rounds(1)
            for module, down, up in algebra.factors(played.state.everybody.adapter):
                mean = torch.zeros(20, 25)
                for client in played.clients:
                    own = before | {name: before[name] + t for name, t in played.changes(client)[-1].items()}
                    mean += n_train(client) / 60 * own[f"{module}.B"] @ own[f"{module}.A"]
                torch.testing.assert_close(up @ down, mean, rtol=1e-4, atol=1e-6)
