"""What is sent: the largest of each tensor or rank, or those that both sides draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import SMALL, normal
from capfl.types import Adapter
from capfl.wire import Codec, select
from capfl.wire.budget import Budget
from capfl.wire.layout import Layout
from capfl.wire.values import VALUES

WHOLE = Layout.of(SMALL, SMALL)  # ranks of 3 + 4, 3 + 4, 3 + 2 and 3 + 2 elements
RANKS = Budget.by_rank(np.ones(4), 0.5, WHOLE, WHOLE)
OWNER = np.repeat(RANKS.owner, RANKS.lengths)  # of every element


def counted(*counts: int) -> Budget:
    return Budget(RANKS.owner, RANKS.lengths, RANKS.sizes, np.array(counts))


def of_tensors(density: float, *sizes: int) -> Budget:
    return Budget.by_tensor(density, Layout(tuple((f"{i}.A", (1, size)) for i, size in enumerate(sizes))))


# -- the largest -------------------------------------------------------------------------------------------


def test_the_largest_of_each_tensor_by_hand():
    def top(density: float, sizes: tuple[int, ...], *values: float) -> list[int]:
        return select.largest(np.array(values, np.float32), of_tensors(density, *sizes)).tolist()

    assert top(0.5, (4, 4), 1, -9, 2, 8, 0.5, 0.1, -0.3, 0.2) == [1, 3, 4, 6]
    # of equals the first are taken, and never a zero
    assert top(0.5, (3, 3), 3, -3, 3, 3, -3, 3) == [0, 1, 3]
    assert top(0.5, (3, 3), 0, -0.0, 5, 0, 0, 0) == [2]
    assert top(1.0, (6,), 0, -0.0, 5, 0, 0, 0) == [2]
    assert top(0.5, ()) == []
    # 1.5 each, and 4.5 rounds to 4: the first takes the one that is missing
    assert of_tensors(0.15, 10, 10, 10).counts.tolist() == [2, 1, 1]
    assert of_tensors(0.29, 100).counts.tolist() == [29]  # 0.29 * 100 is 28.999... in floating point


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0, 1, -1, 2.5, -3, 4]), min_size=24, max_size=24), st.data())
def test_what_is_left_is_never_larger(values, data):
    """Larger magnitudes come first, and then earlier places."""
    counts = [data.draw(st.integers(0, int(size))) for size in RANKS.sizes]
    expected: list[int] = []
    for rank, n in enumerate(counts):
        members = sorted(np.flatnonzero(rank == OWNER).tolist(), key=lambda p: (-abs(values[p]), p))
        expected += [p for p in members[:n] if values[p]]
    assert select.largest(np.array(values, np.float32), counted(*counts)).tolist() == sorted(expected)


# -- random masks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "rounds"), [(0.25, 4), (0.125, 8)])
def test_a_random_mask_comes_round_to_every_element_once(density, rounds):
    for first in (1, 7, 2**32 - 9):
        seen = [select.drawn(first + r, density, WHOLE, WHOLE, 3) for r in range(rounds)]
        assert sorted(np.concatenate(seen).tolist()) == list(range(24))


@pytest.mark.parametrize("first", [1, 2**32 - 3000])
def test_every_element_of_a_rank_comes_up_evenly_often(first):
    """Over 1000 rounds in a row the share of rounds is off by less than a dozen rounds, as of steps of the golden
    section (by chance it would be off by 16 on average, and by 50 now and then)."""
    budget, seen = counted(2, 5, 1, 0), np.zeros(24, np.int64)
    for round_ in range(first, first + 1000):
        seen[select.windows(round_, budget, WHOLE, WHOLE, 0)] += 1
    assert (np.abs(seen - 1000 * (budget.counts / budget.sizes)[OWNER]) < 12).all()


def test_one_client_has_whatever_another_has_that_sends_less():
    for round_ in (1, 2, 9):
        few, more = (select.windows(round_, counted(*c), WHOLE, WHOLE, 0) for c in ((2, 0, 1, 2), (5, 3, 1, 4)))
        assert set(few.tolist()) < set(more.tolist())


def test_messages_that_leave_out_different_tensors_share_one_draw_and_one_sort(monkeypatch):
    """A server decodes as many updates as there are clients: sorting for each would cost thirty times as much."""
    draws: list[tuple[object, ...]] = []
    original, sorts = select.stream, select._all_turns.cache_info().misses
    monkeypatch.setattr(select, "stream", lambda *a: draws.append(a) or original(*a))
    template: Adapter = {
        f"{i}.{factor}": t for i in range(9) for factor, t in (("A", SMALL["q.A"]), ("B", SMALL["q.B"]))
    }
    codec = Codec(VALUES["fp32"], 0.5, mask="random", seed=77)
    for left_out in template:
        part = {name: t for name, t in normal(0, template).items() if name != left_out}
        for importance in (None, np.ones(18)):
            codec.decode(memoryview(codec.encode(part, template, 1, importance)), template, 1)
    assert (len(draws), select._all_turns.cache_info().misses - sorts) == (1, 1)
