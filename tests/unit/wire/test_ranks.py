"""The importance of ranks: as bytes, and as a share of the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import SMALL, important, paired
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import ranks
from capfl.wire.layout import Layout
from capfl.wire.ranks import Ranks

WHOLE = Layout.of(SMALL, SMALL)
FOUR = np.array([3.0, 0.0, 1.0, 0.5])


def layout_of(template: Adapter) -> Layout:
    return Layout.of(template, template)


def arrives(importance: np.ndarray, whole: Layout = WHOLE) -> np.ndarray:
    return ranks.decode(memoryview(ranks.encode(importance, whole)), whole)


def test_importance_by_hand():
    # 1011, then 1 (0x3f8), 1.375 / 4 (0x3eb) and 1.375 / 8 (0x3e3): 13 and 8 steps down are 25 and 15, and with k = 4
    # 01, 1 and 1001, 1111
    assert ranks.encode(FOUR, WHOLE).hex() == "b0f80304609f"
    assert arrives(FOUR).tolist() == [1.0, 0.0, 0.34375, 0.171875]
    assert ranks.encode(np.array([0, 0, 7.5, 0]), WHOLE).hex() == "20f80300"
    assert ranks.share_out(arrives(FOUR), 0.45, WHOLE, WHOLE).tolist() == [7, 0, 3, 1]  # of 24 elements


@pytest.mark.parametrize("unit", [5e-324, 1e-30, 1e30, 1e307])
def test_the_unit_of_importance_does_not_matter(unit):
    assert arrives(np.array([8, 0, 4, 1]) * unit).tolist() == [1, 0, 0.5, 0.125]


@settings(max_examples=40)
@given(st.data(), paired(), st.floats(1e-3, 1.0))
def test_importance_arrives_in_units_of_the_largest_and_shares_the_budget(data, template, density):
    importance, whole = data.draw(important(template)), layout_of(template)
    got = arrives(importance, whole)
    assert ((got > 0) == (importance > 0)).all()  # whatever is not zero stays so
    assert got.max() == 1
    relative = importance / importance.max()
    assert (np.abs(got - relative) <= np.maximum(relative / 16, 2.0**-129)).all()
    assert (arrives(got, whole) == got).all()
    sizes, counts = Ranks.of(whole, whole).sizes, ranks.share_out(got, density, whole, whole)
    assert counts.sum() == min(round(density * whole.size), sizes[importance > 0].sum())
    assert not counts[importance == 0].any()


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ([1, 1, 1], r"shape \(3,\), the adapter has 4 ranks"),
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
        ("b0", "scales are cut off"),
        ("b0f8030460", "too few for 2 numbers"),
        ("b0f80304609f00", "2 bytes of unary code hold 8 numbers, expected 2"),
        ("80f80300ff", "hold 8 numbers, expected 0"),
        ("80000000", "marked as important and has importance 0"),
        ("80ffff00", "not a finite positive number"),
    ],
)
def test_bytes_that_are_not_importance(data, message):
    with pytest.raises(WireError, match=message):
        ranks.decode(memoryview(bytes.fromhex(data)), WHOLE)


def test_every_element_has_its_rank():
    def owned(layout: Layout, whole: Layout = WHOLE) -> list[int]:
        found = Ranks.of(layout, whole)
        assert np.bincount(found.owner, minlength=len(found.sizes)).tolist() == found.sizes.tolist()
        return found.owner.tolist()

    assert owned(WHOLE) == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 2, 2, 3, 3]
    part = Layout.of({"q.B": SMALL["q.B"], "v.A": SMALL["v.A"]}, SMALL)
    assert owned(part) == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert owned(Layout(())) == []
    # ranks are in the order of the factors A
    mixed = {"v.B": torch.zeros(2, 1), "q.A": torch.zeros(2, 1), "v.A": torch.zeros(1, 3), "q.B": torch.zeros(1, 2)}
    assert owned(layout_of(mixed), layout_of(mixed)) == [2, 2, 0, 1, 2, 2, 2, 0, 1]


def test_halves_of_pairs_have_no_importance():
    half = {**SMALL, "k.A": torch.zeros(2, 3), "o.B": torch.zeros(3, 1), "q.W": torch.zeros(1, 2)}
    assert len(arrives(FOUR, layout_of(half))) == 4
    assert ranks.paired(layout_of(half)) == WHOLE
    for name in ("k.A", "o.B", "q.W"):
        with pytest.raises(WireError, match=f"'{name}' is half of a pair"):
            Ranks.of(Layout.of({name: half[name]}, half), layout_of(half))
    with pytest.raises(WireError, match="'q' has factors of rank 2 and 3"):
        ranks.encode(FOUR, layout_of({"q.A": torch.zeros(2, 1), "q.B": torch.zeros(1, 3)}))
