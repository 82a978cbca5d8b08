"""Positions: bytes by hand, any subset back, and near the entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import templates
from capfl.errors import WireError
from capfl.wire import positions, rice
from capfl.wire.layout import Layout

EIGHT = Layout((("m.A", (2, 4)),))
TWICE_FOUR = Layout((("m.A", (1, 4)), ("m.B", (4, 1))))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def head(total: int, *surprise: int) -> bytes:
    """Total, parameter 0, and the coded counts, as a difference from what equal density would give."""
    counted = rice.encode(rice.zigzag(ints(*surprise)), 0)
    return total.to_bytes(4, "little") + b"\0" + len(counted).to_bytes(4, "little") + counted


def test_by_hand():
    # as many as expected: 1. Gaps 1 and 4 with mean (8 - 2) / 2 = 3, so k = 1: unary 1 001, low bits 1 0
    assert positions.encode(ints(1, 6), EIGHT).hex() == "020000000001000000809080"
    # six of eight list the two that are not there
    assert positions.encode(ints(0, 2, 3, 4, 5, 7), EIGHT).hex() == "060000000001000000809080"
    # all or none list nothing: 4 of 8 are there, 2 were expected of each tensor, +2 and -2 are folded 4 and 3: k = 1
    assert positions.encode(ints(0, 1, 2, 3), TWICE_FOUR).hex() == "0400000001020000002840"
    assert positions.encode(np.arange(8), TWICE_FOUR)[9:].hex() == "c0"
    assert positions.encode(ints(), TWICE_FOUR)[9:].hex() == "c0"
    # a half is a bitmap: gaps 0 2 0 0 with mean 1, so k = 0, and 1 001 1 1 marks the places 0, 3, 4 and 5
    assert positions.encode(ints(0, 3, 4, 5), EIGHT)[10:].hex() == "9c"


@settings(max_examples=60)
@given(templates(), st.integers(0, 99), st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9, 1.0]))
def test_any_subset(template, seed, density):
    layout = Layout.of(template, template)
    kept = np.flatnonzero(np.random.default_rng(seed).random(layout.size) < density)
    assert positions.decode(memoryview(positions.encode(kept, layout)), layout).tolist() == kept.tolist()


@pytest.mark.parametrize("density", [0.01, 0.05, 0.15, 0.5, 0.7, 0.95])
def test_the_size_is_near_the_entropy(density):
    template = {f"{i}.A": torch.zeros(8, 500) for i in range(10)}
    layout = Layout.of(template, template)
    kept = np.flatnonzero(np.random.default_rng(0).random(layout.size) < density)
    p = len(kept) / layout.size
    entropy = -layout.size * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    assert len(positions.encode(kept, layout)) < 1.03 * entropy + 30


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (b"\0\0\0\0\x20\0\0\0\0", "cut off"),  # a parameter that no code has
        (head(9, 1, 0), "9 positions in 8 elements"),
        (b"\2\0\0\0\0" + (2**32 - 1).to_bytes(4, "little"), "counted in 4294967295 bytes"),
        (head(2, 0, 1), "do not fit their sizes"),  # 1 + 2 are not 2
        (head(2, 9, -9), "do not fit their sizes"),  # more than the tensor has, less than none
        (head(0, -1, 1), "do not fit their sizes"),
        (head(2, 0, 0) + rice.encode(ints(5, 0), 1), "outside its tensor"),  # 5 is in the other one
        (head(2, 0, 0) + rice.encode(ints(0, 4), 1), "outside its tensor"),
        (head(2, 0, 0), "too few"),
        (head(2, 0, 0) + rice.encode(ints(0, 0, 0), 1), "hold 3 numbers, expected 2"),
    ],
)
def test_what_is_no_set_of_positions(data, message):
    with pytest.raises(WireError, match=message):
        positions.decode(memoryview(data), TWICE_FOUR)
