"""Positions: bytes by hand, any subset back, near the entropy, and nothing for what is full or empty."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import SMALL, templates
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import positions, rice
from capfl.wire.layout import Layout

EIGHT = Layout.of({"m.A": torch.zeros(2, 4)}, {"m.A": torch.zeros(2, 4)})
PAIR = {"m.A": torch.zeros(1, 4), "m.B": torch.zeros(4, 1)}
TWICE_FOUR = Layout.of(PAIR, PAIR)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def head(total: int, *surprise: int) -> bytes:
    """Total, parameter 0, and the coded counts, as a difference from what equal density would give."""
    counted = rice.encode(rice.zigzag(ints(*surprise)), np.zeros(len(surprise), np.int64))
    return total.to_bytes(4, "little") + b"\0" + len(counted).to_bytes(4, "little") + counted


# -- by hand ---------------------------------------------------------------------------------------------


def test_two_of_eight():
    # as many as expected: 1. Gaps 1 and 4 with mean (8 - 2) / 2 = 3, so k = 1: unary 1 001, low bits 1 0
    assert positions.encode(ints(1, 6), EIGHT).hex() == "020000000001000000809080"


def test_six_of_eight_list_the_two_that_are_not_there():
    assert positions.encode(ints(0, 2, 3, 4, 5, 7), EIGHT).hex() == "060000000001000000809080"


def test_all_or_none_list_nothing():
    # 4 of 8 are there, 2 were expected of each tensor: surprises +2, -2, zigzag 4, 3 with mean 3.5, so k = 1
    assert positions.encode(ints(0, 1, 2, 3), TWICE_FOUR).hex() == "0400000001020000002840"
    assert positions.encode(np.arange(8), TWICE_FOUR)[9:].hex() == "c0"
    assert positions.encode(ints(), TWICE_FOUR)[9:].hex() == "c0"


def test_a_half_is_a_bitmap():
    # gaps 0 2 0 0 with mean 1, so k = 0, and 1 001 1 1 marks the places 0, 3, 4 and 5
    assert positions.encode(ints(0, 3, 4, 5), EIGHT)[10:].hex() == "9c"


# -- there and back ----------------------------------------------------------------------------------------


def back(kept: np.ndarray, layout: Layout) -> list[int]:
    return positions.decode(memoryview(positions.encode(kept, layout)), layout).tolist()


@given(templates().flatmap(lambda t: st.tuples(st.just(t), st.sets(st.integers(0, max(0, Layout.of(t, t).size - 1))))))
def test_any_subset(case):
    template, chosen = case
    layout = Layout.of(template, template)
    kept = ints(*sorted(chosen)) if layout.size else ints()
    assert back(kept, layout) == kept.tolist()


@given(st.integers(0, 99), st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.499, 0.5, 0.501, 0.9, 0.99, 1.0]))
def test_larger_tensors_at_any_density(seed, density):
    template: Adapter = {"a.A": torch.zeros(8, 40), "a.B": torch.zeros(30, 8), "b.A": torch.zeros(1, 1)}
    layout = Layout.of(template, template)
    kept = np.flatnonzero(np.random.default_rng(seed).random(layout.size) < density)
    assert back(kept, layout) == kept.tolist()


@pytest.mark.parametrize("half", [slice(0, 12), slice(12, 24), slice(0, 24, 2), slice(0, 0), slice(0, 24)])
def test_empty_full_and_half(half):
    layout = Layout.of(SMALL, SMALL)
    assert back(np.arange(24)[half], layout) == list(range(24))[half]


# -- size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.01, 0.05, 0.15, 0.3, 0.7, 0.95])
def test_the_size_is_near_the_entropy(density):
    template = {f"{i}.A": torch.zeros(8, 500) for i in range(10)}
    layout = Layout.of(template, template)
    kept = np.flatnonzero(np.random.default_rng(0).random(layout.size) < density)
    p = len(kept) / layout.size
    entropy = -layout.size * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    assert len(positions.encode(kept, layout)) < 1.03 * entropy + 30


@given(st.integers(0, 99))
def test_a_half_takes_no_more_than_a_bitmap(seed):
    layout = Layout.of({"m.A": torch.zeros(8, 100)}, {"m.A": torch.zeros(8, 100)})
    kept = np.sort(np.random.default_rng(seed).permutation(800)[:400])
    assert len(positions.encode(kept, layout)) <= 9 + 1 + 800 // 8


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (bytes(8), "cut off"),
        (b"\0\0\0\0\x20\0\0\0\0", "cut off"),  # a parameter that no code has
        (head(9, 1, 0), "9 positions in 8 elements"),
        ((2**32 - 1).to_bytes(4, "little") + bytes(5), "4294967295 positions in 8"),
        (b"\2\0\0\0\0" + (2**32 - 1).to_bytes(4, "little"), "counted in 4294967295 bytes"),
        (head(2, 0, 1), "do not fit their sizes"),  # 1 + 2 are not 2
        (head(2, 9, -9), "do not fit their sizes"),  # more than the tensor has, less than none
        (head(0, -1, 1), "do not fit their sizes"),
        (head(2, 0, 0) + rice.encode(ints(5, 0), ints(1, 1)), "outside its tensor"),  # 5 is in the other one
        (head(2, 0, 0) + rice.encode(ints(0, 4), ints(1, 1)), "outside its tensor"),
        (head(2, 0, 0), "too few"),
        (head(2, 0, 0) + rice.encode(ints(0, 0, 0), ints(1, 1, 1)), "hold 3 numbers, expected 2"),
    ],
)
def test_what_is_no_set_of_positions(data, message):
    with pytest.raises(WireError, match=message):
        positions.decode(memoryview(data), TWICE_FOUR)


def test_cut_off_or_extended():
    data = positions.encode(ints(0, 3, 9, 10, 15, 20), Layout.of(SMALL, SMALL))
    for length in range(len(data)):
        with pytest.raises(WireError):
            positions.decode(memoryview(data[:length]), Layout.of(SMALL, SMALL))
    with pytest.raises(WireError):
        positions.decode(memoryview(data + b"\0"), Layout.of(SMALL, SMALL))


@given(st.binary(max_size=30), st.integers(0, 8), st.lists(st.integers(-4, 4), min_size=2, max_size=2))
def test_forged_bytes_give_positions_or_a_wire_error(tail, total, surprise):
    for data in (tail, head(total, *surprise) + tail):
        try:
            found = positions.decode(memoryview(data), TWICE_FOUR)
        except WireError:
            continue
        assert found.tolist() == sorted(set(found.tolist()))
        assert all(0 <= p < 8 for p in found)
