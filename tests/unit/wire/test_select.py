"""What is sent: exactly density * P elements, the largest, or those that both sides draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import SMALL, normal
from capfl.types import Adapter
from capfl.wire import Codec, select
from capfl.wire.layout import Layout
from capfl.wire.ranks import Ranks
from capfl.wire.values import VALUES

WHOLE = Layout.of(SMALL, SMALL)  # ranks of 3 + 4, 3 + 4, 3 + 2 and 3 + 2 elements


def layout_of(*sizes: int) -> Layout:
    return Layout(tuple((f"{i}.A", (1, size)) for i, size in enumerate(sizes)))


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# -- the largest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "sizes", "counts"),
    [
        (0.15, (10, 10, 10), [2, 1, 1]),  # 1.5 each, 4.5 rounds to 4: the first takes the one that is missing
        (0.1, (30, 14, 6), [3, 1, 1]),  # 3, 1.4, 0.6: the largest fraction takes it
        (0.01, (10, 10), [0, 0]),
        (1.0, (3, 1, 7), [3, 1, 7]),
        (0.29, (100,), [29]),  # 0.29 * 100 is 28.999... in floating point
        (0.5, (), []),
    ],
)
def test_budgets_by_hand(density, sizes, counts):
    assert select.budget(density, layout_of(*sizes)).tolist() == counts


def test_the_largest_of_each_tensor_by_hand():
    assert select.top_of_each(floats(1, -9, 2, 8, 0.5, 0.1, -0.3, 0.2), 0.5, layout_of(4, 4)).tolist() == [1, 3, 4, 6]
    # of equals the first are taken, and never a zero
    assert select.top_of_each(floats(3, -3, 3, 3, -3, 3), 0.5, layout_of(3, 3)).tolist() == [0, 1, 3]
    assert select.top_of_each(floats(0, -0.0, 5, 0, 0, 0), 0.5, layout_of(3, 3)).tolist() == [2]
    assert select.top_of_each(floats(0, -0.0, 5, 0, 0, 0), 1.0, layout_of(6)).tolist() == [2]


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0, 1, -1, 2.5, -3, 4]), min_size=24, max_size=24), st.floats(1e-4, 1), st.data())
def test_what_is_left_is_never_larger(values, density, data):
    """Larger magnitudes come first, and then earlier places; of each tensor, and of each rank."""
    flat = floats(*values)

    def best(members: np.ndarray, count: int) -> list[int]:
        return [p for p in sorted(members.tolist(), key=lambda p: (-abs(values[p]), p))[:count] if values[p]]

    budget = select.budget(density, WHOLE)
    assert budget.sum() == round(density * 24)
    tensors = zip(WHOLE.starts, WHOLE.sizes, budget, strict=True)
    expected = sorted(p for start, size, n in tensors for p in best(np.arange(start, start + size), n))
    assert select.top_of_each(flat, density, WHOLE).tolist() == expected
    own = Ranks.of(WHOLE, WHOLE)
    counts = np.array([data.draw(st.integers(0, int(size))) for size in own.sizes])
    expected = sorted(p for rank, n in enumerate(counts) for p in best(np.flatnonzero(own.owner == rank), n))
    assert select.top_of_ranks(flat, counts, own).tolist() == expected


# -- random masks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "rounds"), [(0.25, 4), (0.125, 8)])
def test_a_random_mask_comes_round_to_every_element_once(density, rounds):
    for first in (1, 7, 2**32 - 9):
        seen = [select.drawn(first + r, density, WHOLE, WHOLE, 3) for r in range(rounds)]
        assert sorted(np.concatenate(seen).tolist()) == list(range(24))


def test_masks_differ_between_seeds_and_rounds():
    counts = np.array([3, 3, 2, 2])
    for draw in (
        lambda r, seed: select.drawn(r, 0.25, WHOLE, WHOLE, seed),
        lambda r, seed: select.windows(r, counts, WHOLE, WHOLE, seed),
    ):
        assert len({tuple(draw(r, seed).tolist()) for r in (1, 2) for seed in range(8)}) == 16


def test_masks_are_the_same_on_every_machine():
    """Both sides draw them, so these numbers are a part of the format."""
    assert select.drawn(1, 0.25, WHOLE, WHOLE, 0).tolist() == [0, 1, 3, 14, 16]
    kept = select.windows(1, np.array([7, 0, 3, 1]), WHOLE, WHOLE, 0)
    assert kept.tolist() == [0, 1, 2, 6, 7, 8, 9, 15, 17, 20, 21]


# -- windows of ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("q.A", "q.B"), ("q.A", "v.A", "v.B"), tuple(SMALL), ()])
@pytest.mark.parametrize("round_", [1, 7, 2**32 - 1])
def test_windows_by_hand(names, round_):
    """Each rank's elements in the order of their places, from the golden section on, as many as it may send."""
    layout, starts = Layout.of({n: SMALL[n] for n in names}, SMALL), dict(zip(SMALL, WHOLE.starts, strict=True))
    place = [select._places(WHOLE, 3)[starts[n] + e] for n, (a, b) in layout.shapes for e in range(a * b)]
    own, expected = Ranks.of(layout, WHOLE), list[int]()
    for rank, size in enumerate(own.sizes.tolist()):
        order = sorted(np.flatnonzero(own.owner == rank).tolist(), key=lambda p: place[p])
        start = (round_ * 2654435769 % 2**32) * size // 2**32
        expected += (order + order)[start : start + size // 2]
    assert select.windows(round_, own.sizes // 2, layout, WHOLE, 3).tolist() == sorted(expected)


@pytest.mark.parametrize("first", [1, 2**32 - 3000])
def test_every_element_comes_up_evenly_often(first):
    """Over 1000 rounds in a row the share of rounds is off by less than a dozen rounds, as of steps of the golden
    section (by chance it would be off by 16 on average, and by 50 now and then)."""
    counts, own, seen = np.array([2, 5, 1, 0]), Ranks.of(WHOLE, WHOLE), np.zeros(24, np.int64)
    for round_ in range(first, first + 1000):
        seen[select.windows(round_, counts, WHOLE, WHOLE, 0)] += 1
    assert (np.abs(seen - 1000 * (counts / own.sizes)[own.owner]) < 12).all()


def test_equal_places_are_in_the_order_of_the_vector(monkeypatch):
    monkeypatch.setattr(select, "_places", lambda whole, seed: np.zeros(whole.size, np.uint32))
    kept = select.windows(2**32, np.array([4, 2, 0, 5]), WHOLE, WHOLE, -1)  # a round that begins at the beginning
    assert kept.tolist() == [0, 1, 2, 3, 4, 6, 17, 18, 19, 22, 23]


def test_messages_that_leave_out_different_tensors_share_one_draw_and_one_sort(monkeypatch):
    """A server decodes as many updates as there are clients: sorting for each would cost thirty times as much."""
    counted: list[str] = []
    for module, name in ((select, "stream"), (np, "lexsort")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, original=original, name=name: counted.append(name) or original(*a))
    template: Adapter = {
        f"{i}.{factor}": t for i in range(9) for factor, t in (("A", SMALL["q.A"]), ("B", SMALL["q.B"]))
    }
    codec = Codec(VALUES["fp32"], 0.5, mask="random", seed=77)
    for left_out in template:
        part = {name: t for name, t in normal(0, template).items() if name != left_out}
        for importance in (None, np.ones(18)):
            codec.decode(memoryview(codec.encode(part, template, 1, importance)), template, 1)
    assert sorted(counted) == ["lexsort", "stream"]
