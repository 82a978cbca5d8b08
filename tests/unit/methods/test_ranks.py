"""All ranks, and shares of them that the server gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapters import CODECS
from capfl.errors import ConfigError, WireError
from capfl.methods.combine import TruncatedProduct
from capfl.methods.ranks import AllRanks, Shares, first_ranks
from capfl.roles import door
from capfl.roles.agreement import Agreement
from capfl.types import ClientState
from parts import CLIENTS, INITIAL, Federation, N, row, update

SHARES = Shares((1.0, 0.5))
HALF = torch.tensor([True, False] * 2)


def test_the_first_ranks_by_hand() -> None:
    adapter = {"q.A": torch.zeros(4, 3), "q.B": torch.zeros(2, 4), "v.A": torch.zeros(3, 3), "v.B": torch.zeros(2, 3)}
    assert first_ranks(0.5, adapter).tolist() == [1, 1, 0, 0, 1, 1, 0]  # 1.5 is rounded up
    assert first_ranks(0.01, adapter).tolist() == [1, 0, 0, 0, 1, 0, 0]  # one at least
    assert first_ranks(1.0, adapter).tolist() == [1] * 7


def test_all_ranks_say_and_keep_nothing() -> None:
    ranks, state = AllRanks(), row().start(INITIAL, CLIENTS)
    assert (ranks.up, ranks.down, ranks.server_state, ranks.client_state) == (None,) * 4
    for found in (
        ranks.start(INITIAL, CLIENTS), ranks.announce(state, "a"), ranks.remember(None, ClientState("a")),
        ranks.report(ClientState("a")), ranks.trained(None), ranks.of_client(state, "a"), ranks.in_own_model(None),
        ranks.importance(None), ranks.kappa(None), ranks.welcome(state, "new", {}),
    ):  # fmt: skip
        assert found is None


def test_shares_are_dealt_out_by_client_id_and_a_newcomer_has_all() -> None:
    state = row(ranks=SHARES).start(INITIAL, ["c", "a", "b"])
    said = {client: SHARES.announce(state, client).marks.sum().item() for client in (*CLIENTS, "new")}
    assert said == {"a": N, "b": N / 2, "c": N, "new": N}
    assert torch.equal(SHARES.of_client(state, "b"), HALF.float())
    assert torch.equal(SHARES.importance(SHARES.announce(state, "b")), HALF.float())
    assert SHARES.importance(state.ranks) is None  # the server's answer has all ranks


@pytest.mark.parametrize("codec", ["fp32", "default", "bf16"])
def test_a_client_trains_sends_and_takes_home_its_own_ranks(codec: str) -> None:
    played = Federation(row(combine=TruncatedProduct(), ranks=SHARES), codec)
    played.rounds(2)
    method, memory = played.agreement.method, played.memory("b")
    assert torch.equal(SHARES.trained(memory.ranks), HALF)
    arrived = played.arrived()
    assert arrived["a"]["q.B"][:, 1].any()
    for adapter in (
        method.starting_point(memory, INITIAL), method.without_unused_ranks(INITIAL, memory), arrived["b"],
    ):  # fmt: skip
        assert not any(bool(adapter[f"{m}.B"][:, 1].any() or adapter[f"{m}.A"][1].any()) for m in "qv")
        assert all(bool(adapter[f"{m}.B"][:, 0].any() and adapter[f"{m}.A"][0].any()) for m in "qv")


def test_ranks_that_a_client_was_not_given_are_refused() -> None:
    played = Federation(row(combine=TruncatedProduct(), ranks=SHARES))
    lie = update("b", {name: torch.full_like(t, 1e-3) for name, t in INITIAL.items()})
    with pytest.raises(WireError, match="has values where client 'b' sends none in round 1"):
        door.admit(lie, played.state, played.agreement)
    door.admit(replace(lie, client="a"), played.state, played.agreement)


def test_a_part_of_an_answer_that_rewrites_everything_is_refused() -> None:
    method, codec = row(combine=TruncatedProduct()), CODECS["default"].model_copy(update={"down_density": 0.5})
    with pytest.raises(ConfigError, match=r"codec\.down_density: with own the server changes all elements"):
        Agreement(method, codec, INITIAL)
    late = codec.model_copy(update={"compensation": "feedback"})
    assert Agreement(method, late, INITIAL).down.density == 0.5
