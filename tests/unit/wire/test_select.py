"""What is sent: exactly density * P elements, the largest, or those that both sides draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import SMALL, templates
from capfl.types import Adapter
from capfl.wire import select
from capfl.wire.layout import Layout

PINNED = [0, 1, 3, 14, 16]


def layout_of(*sizes: int) -> Layout:
    template: Adapter = {f"{i}.A": torch.zeros(1, size) for i, size in enumerate(sizes)}
    return Layout.of(template, template)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


densities = st.floats(1e-4, 1.0)


# -- the budget --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "sizes", "counts"),
    [
        (0.15, (10, 10, 10), [2, 1, 1]),  # 1.5 each, 4.5 rounds to 4: the first takes the one that is missing
        (0.25, (10, 10, 10, 10), [3, 3, 2, 2]),  # 2.5 each
        (0.1, (30, 14, 6), [3, 1, 1]),  # 3, 1.4, 0.6: the largest fraction takes it
        (0.05, (10, 10), [1, 0]),
        (0.01, (10, 10), [0, 0]),
        (1.0, (3, 1, 7), [3, 1, 7]),
        (0.29, (100,), [29]),  # 0.29 * 100 is 28.999... in floating point
        (0.5, (), []),
    ],
)
def test_budgets_by_hand(density, sizes, counts):
    assert select.budget(density, layout_of(*sizes)).tolist() == counts


@given(densities, templates(8))
def test_budgets_sum_to_the_density(density, template):
    layout = Layout.of(template, template)
    counts = select.budget(density, layout)
    assert counts.sum() == round(density * layout.size)
    assert (counts <= layout.sizes).all()
    assert (np.abs(counts - density * layout.sizes) < 1 + 1e-9).all()


# -- the largest -------------------------------------------------------------------------------------------


def test_the_largest_of_each_tensor():
    assert select.top_of_each(floats(1, -9, 2, 8, 0.5, 0.1, -0.3, 0.2), 0.5, layout_of(4, 4)).tolist() == [1, 3, 4, 6]


def test_of_equals_the_first_are_taken_and_never_a_zero():
    assert select.top_of_each(floats(3, -3, 3, 3, -3, 3), 0.5, layout_of(3, 3)).tolist() == [0, 1, 3]
    assert select.top_of_each(floats(0, -0.0, 5, 0, 0, 0), 0.5, layout_of(3, 3)).tolist() == [2]
    assert select.top_of_each(floats(0, -0.0, 5, 0, 0, 0), 1.0, layout_of(6)).tolist() == [2]


@given(st.lists(st.floats(-100, 100, width=32), min_size=24, max_size=24), densities)
def test_what_is_left_is_never_larger(values, density):
    layout, flat = Layout.of(SMALL, SMALL), floats(*values)
    kept = select.top_of_each(flat, density, layout)
    assert kept.tolist() == sorted(set(kept.tolist()))
    for start, size, budget in zip(layout.starts, layout.sizes, select.budget(density, layout), strict=True):
        here = np.abs(flat[start : start + size])
        taken = np.isin(np.arange(start, start + size), kept)
        assert taken.sum() == min(budget, np.count_nonzero(here))
        # larger magnitudes come first, and then earlier places
        order = sorted(range(size), key=lambda i: (-here[i], i))
        assert sorted(order[: taken.sum()]) == np.flatnonzero(taken).tolist()


# -- random masks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "rounds"), [(0.25, 4), (0.125, 8), (0.5, 2)])
def test_a_random_mask_comes_round_to_every_element_once(density, rounds):
    layout = Layout.of(SMALL, SMALL)
    for first in (1, 2, 7, 2**32 - 9):
        seen = [select.drawn(first + r, density, layout, layout, 3) for r in range(rounds)]
        assert sorted(np.concatenate(seen).tolist()) == list(range(24))


@given(st.integers(1, 2**32 - 1), densities, st.integers(0, 9), templates())
def test_a_random_mask_is_a_set_that_both_sides_draw(round_, density, seed, template):
    layout = Layout.of(template, template)
    kept = select.drawn(round_, density, layout, layout, seed)
    assert kept.dtype == np.int64
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert all(0 <= p < layout.size for p in kept)
    assert kept.tolist() == select.drawn(round_, density, layout, layout, seed).tolist()


@pytest.mark.parametrize("density", [0.003, 0.1, 0.3, 0.77])
def test_every_element_is_as_likely_as_the_density_says(density):
    layout = layout_of(10_000)
    counts = [len(select.drawn(r, density, layout, layout, 0)) for r in (1, 2, 50)]
    assert all(abs(n - density * 10_000) < 5 * (10_000 * density * (1 - density)) ** 0.5 for n in counts)


def test_masks_differ_between_seeds_and_rounds():
    layout = Layout.of(SMALL, SMALL)
    masks = {tuple(select.drawn(r, 0.25, layout, layout, seed).tolist()) for r in (1, 2) for seed in range(8)}
    assert len(masks) == 16


@given(st.sets(st.sampled_from(list(SMALL))), st.integers(1, 99), densities)
def test_a_part_of_an_adapter_has_its_part_of_the_mask(names, round_, density):
    whole, part = Layout.of(SMALL, SMALL), Layout.of({n: t for n, t in SMALL.items() if n in names}, SMALL)
    there = np.zeros(24, bool)
    there[select.drawn(round_, density, whole, whole, 5)] = True
    ends = whole.starts + whole.sizes
    pieces = [there[a:b] for (n, _), a, b in zip(whole.shapes, whole.starts, ends, strict=True) if n in names]
    expected = np.flatnonzero(np.concatenate(pieces)) if pieces else np.zeros(0)
    assert select.drawn(round_, density, part, whole, 5).tolist() == expected.tolist()


def test_a_mask_is_the_same_on_every_machine():
    """Both sides draw it, so its numbers are a part of the format."""
    assert select.drawn(1, 0.25, Layout.of(SMALL, SMALL), Layout.of(SMALL, SMALL), 0).tolist() == PINNED
