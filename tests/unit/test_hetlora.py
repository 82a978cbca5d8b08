"""HetLoRA, by hand."""

from __future__ import annotations

import pytest
import torch

from capfl import adapter as algebra
from capfl.config.schema import CodecConfig, MethodConfig
from capfl.methods import Method, build
from capfl.roles import Agreement, server
from capfl.types import ServerState, Trained, Update
from updates import told

PAIR = {"m.A": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "m.B": torch.tensor([[3.0, 0.0], [0.0, 1.0]])}


def het(**settings: object) -> tuple[Method, ServerState]:
    method = build(MethodConfig.model_validate({"name": "hetlora", "rank_shares": (1.0, 0.5)} | settings))
    return method, server.start(Agreement(method, CodecConfig(values="fp32"), PAIR), ["a", "b"])


def test_hetlora_cuts_what_a_client_has_no_rank_for() -> None:
    method, state = het()
    assert torch.equal(method.install(PAIR, told(method, state, "a", PAIR))["m.A"], PAIR["m.A"])
    cut = method.install(PAIR, told(method, state, "b", PAIR))
    assert cut["m.A"].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert cut["m.B"].tolist() == [[3.0, 0.0], [0.0, 0.0]]


def test_hetlora_weighs_clients_by_what_their_adapters_do() -> None:
    method, state = het()
    still = algebra.zeros(PAIR)
    heard = [  # a is where it was, of norm sqrt(9 + 4); b has one rank, and moves B from 3 to 5: of norm 5
        Update(1, "a", still, 1, 1, 1.0, {"alive": torch.ones(2)}),
        Update(
            1,
            "b",
            still | {"m.B": torch.tensor([[2.0, 0.0], [0.0, 0.0]])},
            99,
            1,
            1.0,
            {"alive": torch.tensor([1.0, 0.0])},
        ),
    ]
    new = method.aggregate(state, heard)
    a, b = 13**0.5, 5.0
    torch.testing.assert_close(new.adapter["m.B"], torch.tensor([[3 * a + 5 * b, 0], [0, a]]) / (a + b))
    torch.testing.assert_close(new.adapter["m.A"], torch.tensor([[a + b, 0], [0, 2 * a]]) / (a + b))


def test_hetlora_keeps_the_row_of_a_rank_that_nobody_in_the_round_has() -> None:
    method, state = het()
    alone = [Update(1, "b", algebra.zeros(PAIR), 1, 1, 1.0, {"alive": torch.tensor([1.0, 0.0])})]
    new = method.aggregate(state, alone)
    torch.testing.assert_close(new.adapter["m.A"], PAIR["m.A"])
    torch.testing.assert_close(new.adapter["m.B"], torch.tensor([[3.0, 0.0], [0.0, 0.0]]))


def test_hetlora_holds_down_the_ranks_that_it_may_prune() -> None:
    method, state = het(prune_weight=0.5)
    assert method.penalty is not None
    term = method.penalty(PAIR, told(method, state, "a", PAIR))
    live = {key: t.clone().requires_grad_() for key, t in PAIR.items()}
    value = term.term(live, term.constants)
    assert float(value.detach()) == 0.5 * 1.0 * 2.0  # ||b_2|| ||a_2||: of two ranks the first is kept
    value.backward()
    assert live["m.B"].grad is not None
    assert live["m.B"].grad.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    one = method.penalty(PAIR, told(method, state, "b", PAIR))
    assert float(one.term(PAIR, one.constants)) == 0.0  # a single rank is never pruned


@pytest.mark.parametrize("nothing", [False, True])
def test_hetlora_has_a_gradient_where_b_is_zero(nothing: bool) -> None:
    method, state = het()
    start = PAIR | {"m.B": torch.zeros(2, 2)} if nothing else PAIR
    assert method.penalty is not None
    term = method.penalty(start, told(method, state, "a", PAIR))
    live = {key: t.clone().requires_grad_() for key, t in start.items()}
    term.term(live, term.constants).backward()
    assert all(t.grad is not None and bool(t.grad.isfinite().all()) for t in live.values())


@pytest.mark.parametrize(("end", "ranks"), [(0.5, [1, 0]), (1.0, [1, 1]), (1.5, [1, 1])])
def test_hetlora_prunes_what_has_become_smaller(end: float, ranks: list[int]) -> None:
    method, state = het()
    memory = told(method, state, "a", PAIR)
    trained = PAIR | {"m.B": torch.tensor([[7.0, 0.0], [0.0, end]])}
    change, memory = method.collect(PAIR, Trained(trained, (1.0,)), memory)
    assert memory.notes["alive"].tolist() == ranks
    assert change["m.B"].tolist() == [[4.0, 0.0], [0.0, (end - 1) * ranks[1]]]
    assert method.report is not None
    assert method.report(memory)["alive"].tolist() == ranks
    assert method.heed is not None
    assert method.heed({"alive": torch.ones(2)}, memory).notes["alive"].tolist() == ranks  # it does not come back
