"""The importance of ranks: as bytes, as a share of the budget, and as windows that both sides draw."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import SMALL, important, paired
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import ranks, select
from capfl.wire.layout import Layout
from capfl.wire.ranks import Ranks

WHOLE = Layout.of(SMALL, SMALL)  # ranks of 3 + 4, 3 + 4, 3 + 2 and 3 + 2 elements
FOUR = np.array([3.0, 0.0, 1.0, 0.5])
PINNED = [0, 1, 2, 6, 7, 8, 9, 15, 17, 20, 21]
densities = st.floats(1e-3, 1.0)


def layout_of(template: Adapter) -> Layout:
    return Layout.of(template, template)


def arrives(importance: np.ndarray, whole: Layout = WHOLE) -> np.ndarray:
    return ranks.decode(memoryview(ranks.encode(importance, whole)), whole)


# -- importance as bytes -----------------------------------------------------------------------------------


def test_importance_by_hand():
    # 1011, then 1 (0x3f8), 1.375 / 4 (0x3eb) and 1.375 / 8 (0x3e3): 13 and 8 steps down are 25 and 15, and with k = 4
    # 01, 1 and 1001, 1111
    assert ranks.encode(FOUR, WHOLE).hex() == "b0f80304609f"
    assert arrives(FOUR).tolist() == [1.0, 0.0, 0.34375, 0.171875]
    assert ranks.encode(np.array([0, 0, 7.5, 0]), WHOLE).hex() == "20f80300"


@given(st.data(), paired())
def test_importance_arrives_in_units_of_the_largest(data, template):
    importance, whole = data.draw(important(template)), layout_of(template)
    got = arrives(importance, whole)
    assert ((got > 0) == (importance > 0)).all()  # whatever is not zero stays so
    assert got.max() == 1
    relative = importance / importance.max()
    assert (np.abs(got - relative) <= np.maximum(relative / 16, 2.0**-129)).all()
    assert (arrives(got, whole) == got).all()


@pytest.mark.parametrize("unit", [5e-324, 1e-300, 1e-30, 1e30, 1e307])
def test_the_unit_of_importance_does_not_matter(unit):
    assert arrives(np.array([8, 0, 4, 1]) * unit).tolist() == [1, 0, 0.5, 0.125]


def test_the_least_importance_is_not_zero():
    assert arrives(np.array([1e300, 0, 1e-300, 5e-324])).tolist() == [1, 0, 2.0**-129, 2.0**-129]


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ([1, 1, 1], r"shape \(3,\), the adapter has 4 ranks"),
        ([1, 1, 1, 1, 1], r"shape \(5,\)"),
        ([[1, 1, 1, 1]], r"shape \(1, 4\)"),
        ([0, 0, 0, 0], "that of all is zero"),
        ([1, 1, -1, 1], "negative"),
        ([1, 1, np.nan, 1], "not finite"),
        ([1, 1, np.inf, 1], "not finite"),
    ],
)
def test_importance_that_is_none(importance, message):
    with pytest.raises(WireError, match=message):
        ranks.encode(np.array(importance, float), WHOLE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "0 bytes for the importance of 4 ranks"),
        ("b8f803046070", "a rank is important that the adapter does not have"),
        ("00", "no rank is of any importance"),
        ("00f803", "no rank is of any importance"),
        ("b0", "scales are cut off"),
        ("b0f803", "scales are cut off"),
        ("b0f80304", "too few for 2 numbers"),
        ("b0f8030460", "too few for 2 numbers"),
        ("b0f80304609f00", "2 bytes of unary code hold 8 numbers, expected 2"),
        ("b0f80320609f", "scales are cut off"),
        ("80f80300ff", "hold 8 numbers, expected 0"),
        ("80000000", "marked as important and has importance 0"),
        ("80ffff00", "not a finite positive number"),
    ],
)
def test_bytes_that_are_not_importance(data, message):
    with pytest.raises(WireError, match=message):
        ranks.decode(memoryview(bytes.fromhex(data)), WHOLE)


@given(st.binary(max_size=12), paired())
def test_any_bytes_are_importance_or_refused(data, template):
    try:
        got = ranks.decode(memoryview(data), layout_of(template))
    except WireError:
        return
    assert got.any()
    assert np.isfinite(got).all()
    assert (got >= 0).all()


# -- elements and ranks ------------------------------------------------------------------------------------


def test_every_element_has_its_rank():
    assert Ranks.of(WHOLE, WHOLE).owner.tolist() == [0] * 3 + [1] * 3 + [0] * 4 + [1] * 4 + [2] * 3 + [3] * 3 + [
        2, 2, 3, 3,
    ]  # fmt: skip
    assert Ranks.of(WHOLE, WHOLE).sizes.tolist() == [7, 7, 5, 5]
    part = Layout.of({"q.B": SMALL["q.B"], "v.A": SMALL["v.A"]}, SMALL)
    assert Ranks.of(part, WHOLE).owner.tolist() == [0] * 4 + [1] * 4 + [2] * 3 + [3] * 3
    assert Ranks.of(part, WHOLE).sizes.tolist() == [4, 4, 3, 3]
    assert Ranks.of(Layout(()), WHOLE).sizes.tolist() == [0, 0, 0, 0]


def test_ranks_are_in_the_order_of_the_factors_A():
    mixed = {"v.B": torch.zeros(2, 1), "q.A": torch.zeros(2, 1), "v.A": torch.zeros(1, 3), "q.B": torch.zeros(1, 2)}
    assert Ranks.of(layout_of(mixed), layout_of(mixed)).owner.tolist() == [2, 2, 0, 1, 2, 2, 2, 0, 1]


def test_halves_of_pairs_have_no_importance():
    half = {**SMALL, "k.A": torch.zeros(2, 3), "o.B": torch.zeros(3, 1), "bias": torch.zeros(1, 2)}
    assert len(arrives(FOUR, layout_of(half))) == 4
    for name in ("k.A", "o.B", "bias"):
        with pytest.raises(WireError, match=f"'{name}' is half of a pair"):
            Ranks.of(Layout.of({name: half[name]}, half), layout_of(half))
    with pytest.raises(WireError, match="'q' has factors of rank 2 and 3"):
        ranks.encode(FOUR, layout_of({"q.A": torch.zeros(2, 1), "q.B": torch.zeros(1, 3)}))


@given(st.data(), paired(), densities)
def test_what_ranks_may_send_is_the_budget(data, template, density):
    importance, whole = data.draw(important(template)), layout_of(template)
    sizes, counts = Ranks.of(whole, whole).sizes, ranks.shared(importance, density, whole, whole)
    assert counts.sum() == min(round(density * whole.size), sizes[importance > 0].sum())
    assert not counts[importance == 0].any()
    equal = ranks.shared(np.ones(len(sizes)), density, whole, whole)
    assert equal.sum() == round(density * whole.size)


# -- windows -----------------------------------------------------------------------------------------------


@st.composite
def some_counts(draw: st.DrawFn, layout: Layout, whole: Layout) -> np.ndarray:
    return np.array([draw(st.integers(0, int(size))) for size in Ranks.of(layout, whole).sizes], np.int64)


@given(st.data(), paired(), st.integers(1, 2**32 - 1), st.integers(0, 9))
def test_windows_have_just_as_many_of_each_rank(data, template, round_, seed):
    names, whole = data.draw(st.sets(st.sampled_from(list(template)))), layout_of(template)
    part = Layout.of({n: t for n, t in template.items() if n in names}, template)
    for layout in (whole, part):
        counts = data.draw(some_counts(layout, whole))
        kept = select.windows(round_, counts, layout, whole, seed)
        assert kept.tolist() == sorted(set(kept.tolist()))
        owner = Ranks.of(layout, whole).owner[kept]
        assert np.bincount(owner, minlength=len(counts)).tolist() == counts.tolist()
        assert kept.tolist() == select.windows(round_, counts, layout, whole, seed).tolist()


@given(st.data(), paired(), st.integers(1, 2**32 - 1))
def test_windows_of_a_round_are_nested(data, template, round_):
    whole = layout_of(template)
    more, other = data.draw(some_counts(whole, whole)), data.draw(some_counts(whole, whole))
    kept = set(select.windows(round_, more, whole, whole, 0).tolist())
    assert set(select.windows(round_, np.minimum(more, other), whole, whole, 0).tolist()) <= kept


@settings(max_examples=20)
@given(st.data(), paired(2), st.integers(1, 2**32 - 3000))
def test_every_element_comes_up_evenly_often(data, template, first):
    """Over 1000 rounds in a row the share of rounds is off by less than a dozen rounds, as of steps of the golden
    section (by chance it would be off by 16 on average, and by 50 now and then)."""
    whole = layout_of(template)
    counts, ranks_ = data.draw(some_counts(whole, whole)), Ranks.of(whole, whole)
    seen = np.zeros(whole.size, np.int64)
    for round_ in range(first, first + 1000):
        seen[select.windows(round_, counts, whole, whole, 0)] += 1
    assert (np.abs(seen - 1000 * (counts / ranks_.sizes)[ranks_.owner]) < 12).all()


@given(st.integers(1, 2**32 - 1), st.integers(0, 7))
def test_a_window_by_hand(round_, n):
    """One rank of seven elements: places in order, from the golden section on."""
    place = select._places(WHOLE, WHOLE, 3)
    order = sorted([0, 1, 2, 6, 7, 8, 9], key=lambda p: place[p])
    start = int(Fraction(round_ * 2654435769 % 2**32, 2**32) * 7)
    kept = select.windows(round_, np.array([n, 0, 0, 0]), WHOLE, WHOLE, 3).tolist()
    assert kept == sorted((order + order)[start : start + n])


def test_equal_places_are_in_the_order_of_the_vector(monkeypatch):
    monkeypatch.setattr(select, "_places", lambda layout, whole, seed: np.zeros(layout.size, np.uint32))
    kept = select.windows(2**32, np.array([4, 2, 0, 5]), WHOLE, WHOLE, -1)  # a round that begins at the beginning
    assert kept.tolist() == [0, 1, 2, 3, 4, 6, 17, 18, 19, 22, 23]


def test_windows_differ_between_seeds_and_rounds():
    counts = np.array([3, 3, 2, 2])
    found = {tuple(select.windows(r, counts, WHOLE, WHOLE, seed).tolist()) for r in (1, 2, 3) for seed in range(8)}
    assert len(found) == 24


def test_windows_are_the_same_on_every_machine():
    """Both sides draw them, so these numbers are a part of the format."""
    counts = ranks.shared(arrives(FOUR), 0.45, WHOLE, WHOLE)
    assert counts.tolist() == [7, 0, 3, 1]
    assert select.windows(1, counts, WHOLE, WHOLE, 0).tolist() == PINNED


# -- the largest -------------------------------------------------------------------------------------------


@given(st.data(), st.lists(st.sampled_from([0, 1, -1, 2.5, -3, 4]), min_size=24, max_size=24))
def test_the_largest_of_each_rank(data, values):
    counts, flat, owner = (
        data.draw(some_counts(WHOLE, WHOLE)),
        np.array(values, np.float32),
        Ranks.of(WHOLE, WHOLE).owner,
    )
    kept = select.top_of_ranks(flat, counts, Ranks.of(WHOLE, WHOLE))
    assert kept.dtype == np.int64
    best: list[int] = []
    for rank, n in enumerate(counts):
        own = sorted(np.flatnonzero(owner == rank).tolist(), key=lambda p: (-abs(values[p]), p))
        best += [p for p in own[:n] if values[p]]
    assert kept.tolist() == sorted(best)


def test_of_ranks_that_send_nothing_nothing_is_largest():
    assert select.top_of_ranks(np.ones(24, np.float32), np.zeros(4, np.int64), Ranks.of(WHOLE, WHOLE)).tolist() == []
