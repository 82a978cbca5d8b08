"""Positions: bytes by hand, any subset back, and near the entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.errors import WireError
from capfl.wire import positions


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_by_hand():
    # two are there. Gaps 1 and 4 with mean 5/2, so k = 1: unary 1 001, low bits 1 0
    assert positions.encode(ints(1, 6), 8).hex() == "02000000" "01" "90" "80"  # fmt: skip
    # six of eight list the two that are not there
    assert positions.encode(ints(0, 2, 3, 4, 5, 7), 8).hex() == "06000000" "01" "90" "80"  # fmt: skip
    assert positions.encode(np.arange(8), 8).hex() == "0800000000"  # all or none list nothing
    assert positions.encode(ints(), 8).hex() == "0000000000"
    # a half is a bitmap: gaps 0 2 0 0 with mean 1/2, so k = 0, and 1 001 1 1 marks the places 0, 3, 4 and 5
    assert positions.encode(ints(0, 3, 4, 5), 8).hex() == "04000000" "00" "9c"  # fmt: skip


@settings(max_examples=60)
@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9, 1.0]))
def test_any_subset(size, seed, density):
    kept = np.flatnonzero(np.random.default_rng(seed).random(size) < density)
    assert positions.decode(memoryview(positions.encode(kept, size)), size).tolist() == kept.tolist()


@pytest.mark.parametrize("density", [0.01, 0.05, 0.15, 0.5, 0.7, 0.95])
def test_the_size_is_near_the_entropy(density):
    kept = np.flatnonzero(np.random.default_rng(0).random(40_000) < density)
    p = len(kept) / 40_000
    entropy = -40_000 * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    assert len(positions.encode(kept, 40_000)) < 1.03 * entropy + 9


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "0 bytes for 0 positions"),
        ("09000000" "00", "5 bytes for 9 positions in 8 elements"),
        ("01000000" "00" "0080", "a position is not one of 8"),  # a gap of 8
        ("02000000" "00" "0880", "a position is not one of 8"),  # a gap of 4, and one of 3
        ("02000000" "00", "too few"),
        ("02000000" "00" "e0", "hold 3 numbers, expected 2"),
        ("04000000" "1f" "1111" + "ff" * 15 + "f0", "a position is not one of 8"),  # as large as numbers can be
    ],
)  # fmt: skip
def test_what_is_no_set_of_positions(data, message):
    with pytest.raises(WireError, match=message):
        positions.decode(memoryview(bytes.fromhex(data)), 8)
