"""Rice codes and numbers of a fixed width: bits written out by hand, every number back, and one code for each list."""

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
    ("numbers", "expected"),
    [
        ([0, 1, 0], "00b0"),  # mean 1/3: 1 01 1 and spare bits
        ([5, 0], "01" "30" "80"),  # mean 5/2: 001 1, and then the low bits 1 0
        ([6, 4], "02" "50" "80"),  # mean 5: 01 01, and then 10 00
        ([], "00"),
    ],
)  # fmt: skip
def test_codes_by_hand(numbers, expected):
    assert rice.write(ints(*numbers)).hex() == expected
    assert rice.read(memoryview(bytes.fromhex(expected)), len(numbers)).tolist() == numbers


def test_widths_and_signs_by_hand():
    assert rice.pack(ints(1, 2, 3), 2).hex() == "6c"  # 01 10 11 00
    assert rice.pack(ints(0x1FF, 0), 9).hex() == "ff8000"
    assert rice.pack(ints(), 5) == b""
    assert rice.zigzag(ints(0, -1, 1, -2, 2)).tolist() == [0, 1, 2, 3, 4]
    assert rice.unzigzag(ints(0, 1, 2, 3, 4)).tolist() == [0, -1, 1, -2, 2]


@pytest.mark.parametrize("width", range(32))
def test_numbers_of_every_width_are_their_bits_one_after_the_other(width, monkeypatch):
    monkeypatch.setattr(rice, "BLOCK", 16)  # of which there are some, and a part of one
    numbers = np.random.default_rng(width).integers(0, 2**31, 43)
    low = numbers % 2**width
    bits = "".join(f"{n:0{width}b}" for n in low) if width else ""
    bits += "0" * (-len(bits) % 8)
    packed = rice.pack(numbers, width)
    assert packed == bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    assert rice.unpack(memoryview(packed), 43, width).tolist() == low.tolist()


@settings(max_examples=40)
@given(st.integers(0, 31).flatmap(lambda k: st.lists(st.integers(0, (200 << k) - 1), max_size=30)))
def test_any_numbers(numbers):
    assert rice.read(memoryview(rice.write(ints(*numbers))), len(numbers)).tolist() == numbers


@pytest.mark.parametrize("mean", [0.01, 0.3, 1, 1.6, 1.7, 3, 19, 1000, 1e6])
def test_the_parameter_is_the_best_for_geometric_numbers(mean):
    q = mean / (mean + 1)
    bits = [k + 1 / (1 - q ** (2**k)) for k in range(rice.MAX_K + 1)]  # expected length of one number
    assert rice.best_k(round(mean * 10**6), 10**6) == int(np.argmin(bits))


@pytest.mark.parametrize(
    ("data", "n", "message"),
    [
        ("", 1, "0 bytes do not begin with a Rice parameter"),
        ("20", 1, "1 bytes do not begin with"),  # a parameter that no code has
        ("00", 1, "1 bytes are too few for 1"),
        ("0000", 1, "hold 0 numbers, expected 1"),  # the one never comes
        ("00c0", 1, "hold 2 numbers, expected 1"),
        ("008000", 1, "hold 1 numbers, expected 1"),  # a byte too many
        ("0180", 1, "2 bytes are too few for 1"),
        ("0180c0", 1, "spare bits"),
        ("0080", 0, "hold 1 numbers, expected 0"),
    ],
)
def test_what_is_no_code(data, n, message):
    with pytest.raises(WireError, match=message):
        rice.read(memoryview(bytes.fromhex(data)), n)


def test_bytes_of_another_length():
    for data in (b"", b"\0\0"):
        with pytest.raises(WireError, match=f"{len(data)} bytes, 3 numbers of 2 bits take 1"):
            rice.unpack(memoryview(data), 3, 2)
