"""Rice codes: bits written out by hand, every number back, and one code for each list of numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.errors import WireError
from capfl.wire import rice


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("numbers", "ks", "expected"),
    [
        ([0, 1, 2], [0, 0, 0], "a4"),  # 1 01 001 and two spare bits
        ([5], [1], "2080"),  # 5 is 2 * 2 + 1: 001, and then 1
        ([3, 6, 1], [0, 2, 1], "168080"),  # 0001, 01 and 10, 1 and 1: unary parts, then low bits of k = 1, of k = 2
        ([], [], ""),
    ],
)
def test_codes_by_hand(numbers, ks, expected):
    assert rice.encode(ints(*numbers), ints(*ks)).hex() == expected
    assert rice.decode(memoryview(bytes.fromhex(expected)), ints(*ks)).tolist() == numbers


def test_widths_and_signs_by_hand():
    assert rice.pack(ints(1, 2, 3), 2).hex() == "6c"  # 01 10 11 00
    assert rice.pack(ints(0x1FF, 0), 9).hex() == "ff8000"
    assert rice.pack(ints(), 5) == b""
    assert rice.zigzag(ints(0, -1, 1, -2, 2)).tolist() == [0, 1, 2, 3, 4]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 31).flatmap(lambda k: st.tuples(st.integers(0, (200 << k) - 1), st.just(k)))))
def test_any_numbers_under_any_parameters(pairs):
    values, ks = ints(*(v for v, _ in pairs)), ints(*(k for _, k in pairs))
    data = rice.encode(values, ks)
    assert rice.decode(memoryview(data), ks).tolist() == values.tolist()
    # unary parts and low bits, each run up to a whole byte
    runs = [int((values >> ks).sum()) + len(ks)] + [int(k) * int((ks == k).sum()) for k in np.unique(ks)]
    assert len(data) == sum((bits + 7) // 8 for bits in runs)
    signed = np.where(ks % 2 == 0, values, -values)
    assert rice.unzigzag(rice.zigzag(signed)).tolist() == signed.tolist()


@settings(max_examples=40)
@given(st.integers(1, 31).flatmap(lambda w: st.tuples(st.just(w), st.lists(st.integers(0, 2**w - 1)))))
def test_any_numbers_of_any_width(case):
    width, values = case
    data = rice.pack(ints(*values), width)
    assert len(data) == (width * len(values) + 7) // 8
    assert rice.unpack(memoryview(data), len(values), width).tolist() == values


@pytest.mark.parametrize("mean", [0.01, 0.3, 1, 1.6, 1.7, 3, 19, 1000, 1e6])
def test_the_parameter_is_the_best_for_geometric_numbers(mean):
    q = mean / (mean + 1)
    bits = [k + 1 / (1 - q ** (2**k)) for k in range(rice.MAX_K + 1)]  # expected length of one number
    assert rice.best_k(round(mean * 10**6), 10**6) == int(np.argmin(bits))


def test_parameters_at_the_ends():
    assert (rice.best_k(0, 0), rice.best_k(0, 5), rice.best_k(5, 0)) == (0, 0, 0)
    assert rice.best_k(2**50, 1) == rice.MAX_K


@pytest.mark.parametrize(
    ("data", "ks", "message"),
    [
        ("", [0], "0 bytes are too few for 1"),
        ("00", [0], "hold 0 numbers, expected 1"),  # the one never comes
        ("c0", [0], "hold 2 numbers, expected 1"),
        ("8000", [0], "hold 1 numbers, expected 1"),  # a byte too many
        ("80", [1], "1 bytes are too few for 1"),
        ("80c0", [1], "spare bits"),
        ("8080ff", [1, 2], "hold 1 numbers, expected 2"),
        ("80", [], "hold 1 numbers, expected 0"),
    ],
)
def test_what_is_no_code(data, ks, message):
    with pytest.raises(WireError, match=message):
        rice.decode(memoryview(bytes.fromhex(data)), ints(*ks))


@settings(max_examples=60)
@given(st.binary(max_size=24), st.lists(st.integers(0, 31), max_size=9))
def test_a_list_of_numbers_has_one_code(data, ks):
    """Whatever is accepted is just what encode would have written."""
    try:
        values = rice.decode(memoryview(data), ints(*ks))
    except WireError:
        return
    assert rice.encode(values, ints(*ks)) == data
