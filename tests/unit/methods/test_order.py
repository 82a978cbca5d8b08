"""In which order the members of a group train."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.methods.order import Order
from capfl.types import EVERYBODY
from fake import Fake, of

MANY = [f"client-{n:02d}" for n in range(30)]


def turns(most: int, group_of: dict[str, str], seed: int = 0, round: int = 1) -> list[list[str]]:
    return Order(most).of_round(list(group_of), group_of, seed, round)


@given(st.integers(1, 9), st.lists(st.sampled_from(["g", "h", EVERYBODY]), min_size=1, max_size=20), st.integers(0, 9))
def test_every_client_once_no_turn_empty_and_turns_of_a_group_even(most: int, groups: list[str], seed: int) -> None:
    group_of = dict(zip(MANY, groups, strict=False))
    found = turns(most, group_of, seed)
    assert sorted(client for turn in found for client in turn) == sorted(group_of)
    assert all(turn == sorted(turn) for turn in found)
    assert all(found)
    assert len(found) == min(most, max(Counter(groups).values()))
    for name, size in Counter(groups).items():
        in_turn = [sum(group_of[client] == name for client in turn) for turn in found]
        n = min(most, size)
        assert set(in_turn[:n]) <= {size // n, -(-size // n)}
        assert not any(in_turn[n:])  # a small group takes its turns first, beside those of the others


def test_a_group_of_thirty_in_six_turns_makes_blocks_of_five() -> None:
    assert [len(turn) for turn in turns(6, dict.fromkeys(MANY, "g"))] == [5] * 6


def test_all_together_unless_turns_are_asked_for() -> None:
    assert Order().of_round(MANY[::-1], {MANY[0]: "g"}, 0, 1) == [MANY]


@pytest.mark.parametrize("other", [{"seed": 1}, {"round": 2}])
def test_the_order_follows_from_the_seed_and_is_another_in_every_round(other: dict[str, int]) -> None:
    group_of = dict.fromkeys(MANY, "g")
    found = turns(30, group_of)
    assert found == turns(30, dict(reversed(group_of.items())))
    assert found != turns(30, group_of, **other)
    assert found != turns(30, dict.fromkeys(MANY, "h"))
    firsts = {turns(30, group_of, round=round)[0][0] for round in range(1, 60)}
    assert len(firsts) > 20  # anybody may be the first: about 26 of 30 were, in so many draws


@pytest.mark.parametrize("method", ["fedit in turns", "ca-pfl in turn"])
def test_who_is_alone_in_its_turn_is_passed_on_as_it_came_and_not_sent_back(method: str) -> None:
    fake = Fake(of(method, "default"))
    fake.play(2)
    alone = {client for turn in fake.turns for client in turn if method == "ca-pfl in turn" or len(turn) == 1}
    assert set(fake.state.own) == alone
    for client in alone:
        group = fake.state.group(client)
        body = group.log[fake.state.own[client] - fake.state.version - 1]
        assert fake.disk.newest(client).sent == body
        assert fake.state.own[client] == fake.state.versions[client] + 1
