"""Values: bytes and roundings by hand, bounds on any numbers, and nothing but WireError for other bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters import KINDS
from capfl.errors import WireError
from capfl.wire.layout import Layout
from capfl.wire.values import VALUES

TWO_RANKS = Layout.of({"m.A": torch.zeros(2, 2)}, {"m.A": torch.zeros(2, 2)})
ONE_RANK = Layout.of({"m.A": torch.zeros(1, 4)}, {"m.A": torch.zeros(1, 4)})
PAIR = {"m.A": torch.zeros(2, 5), "m.B": torch.zeros(5, 2)}
FOUR_RANKS = Layout.of(PAIR, PAIR)  # of five elements each, in two tensors
LEVELS = {"8bit": 128, "4bit": 8, "3bit": 4, "2bit": 2}

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
usual = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda x: abs(x) > 2.0**-60)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def coded(name: str, values: np.ndarray, layout: Layout, *kept: int) -> tuple[bytes, bytes]:
    return VALUES[name].encode(values, np.array(kept, np.int64), layout)


def back(name: str, values: np.ndarray, kept: np.ndarray, layout: Layout) -> np.ndarray:
    scales, data = VALUES[name].encode(values, kept, layout)
    return VALUES[name].decode(memoryview(scales), memoryview(data), kept, layout)


# -- plain -------------------------------------------------------------------------------------------------


@given(st.lists(finite, min_size=1, max_size=20))
def test_fp32_is_exact(values):
    array = floats(*values)
    assert back("fp32", array, np.arange(len(values)), FOUR_RANKS).tobytes() == array.tobytes()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_bf16_rounds_to_nearest_once(values):
    array = floats(*values)
    got = back("bf16", array, np.arange(len(values)), FOUR_RANKS)
    assert got.tolist() == torch.from_numpy(array).bfloat16().float().tolist()
    assert back("bf16", got, np.arange(len(values)), FOUR_RANKS).tolist() == got.tolist()


def test_plain_by_hand():
    assert coded("fp32", floats(1.0, -2.0), ONE_RANK, 0, 1) == (b"", bytes.fromhex("0000803f000000c0"))
    assert coded("bf16", floats(1.0, 0.1), ONE_RANK, 0, 1) == (b"", bytes.fromhex("803fcd3d"))
    # the last is half way, and rounds to even
    assert back("bf16", floats(1.0, 0.1, 1.00390625), np.arange(3), ONE_RANK).tolist() == [1.0, 0.10009765625, 1.0]


# -- ternary -----------------------------------------------------------------------------------------------


def test_ternary_is_the_mean_magnitude_of_a_rank():
    values = floats(1.0, -3.0, 0.5, -0.5)
    assert back("ternary", values, np.arange(4), TWO_RANKS).tolist() == [2.0, -2.0, 0.5, -0.5]
    scales, signs = coded("ternary", values, TWO_RANKS, 0, 1, 2, 3)
    assert signs.hex() == "50"  # 0101
    # 2 is 0x200 and 1/2 is 0x1f8: first 0x200, then -8, zigzag 15, under k = 3 a 01 and 111
    assert scales.hex() == "00020340e0"


def test_a_rank_without_values_has_no_scale():
    scales, _ = coded("ternary", floats(3.0, -5.0), FOUR_RANKS, 5, 19)  # ranks 1 and 3
    # 3 is 0x202 and 5 is 0x205: first 0x202, then 3, zigzag 6, under k = 2 a 01 and 10
    assert scales.hex() == "0202024080"
    assert back("ternary", floats(3.0, -5.0), np.array([5, 19]), FOUR_RANKS).tolist() == [3.0, -5.0]


@pytest.mark.parametrize(("mean", "scale"), [(1.0, 1.0), (1.12, 1.0), (1.13, 1.25), (7.0, 7.0), (7.6, 8.0)])
def test_ternary_scales_have_two_bits_of_mantissa(mean, scale):
    assert back("ternary", floats(mean, -mean), np.arange(2), ONE_RANK).tolist() == [scale, -scale]


@given(st.lists(usual, min_size=1, max_size=5))
def test_ternary_is_within_an_eighth_of_the_mean(values):
    got = back("ternary", floats(*values), np.arange(len(values)), FOUR_RANKS)
    mean = float(np.abs(floats(*values)).astype(np.float64).mean())
    assert set(np.abs(got).tolist()) == {abs(float(got[0]))}
    assert abs(abs(float(got[0])) - mean) <= mean / 8 * 1.0001
    assert [x < 0 for x in got] == [x < 0 for x in values]


def test_zeros_that_a_random_mask_sends_stay_zero():
    for name in KINDS:
        assert VALUES[name].encode(floats(0, 0), np.arange(2), ONE_RANK, True) == coded(
            name, floats(0, 0), ONE_RANK, 0, 1
        )
        assert back(name, floats(0, 0, 0, 0), np.arange(4), TWO_RANKS).tolist() == [0, 0, 0, 0]
    assert back("ternary", floats(0, 0, 4, -4), np.arange(4), TWO_RANKS).tolist() == [0, 0, 4, -4]


# -- levels ------------------------------------------------------------------------------------------------


def test_two_bits_by_hand():
    # from 1 to 5 in two levels of width 2, which stand for 2 and 4
    values = floats(1.0, 2.0, -3.0, 5.0)
    assert back("2bit", values, np.arange(4), ONE_RANK).tolist() == [2.0, 2.0, -4.0, 4.0]
    scales, data = coded("2bit", values, ONE_RANK, 0, 1, 2, 3)
    # 1 is 0x3f8 and 5 is 0x40a: first 0x3f8, then 18, zigzag 36, under k = 5 a 01 and 00100
    assert scales.hex() == "f803054020"
    assert data.hex() == "20ff30"  # signs 0010; levels of fixed width 0011


def test_three_bits_by_hand():
    # four levels of width 1, which stand for 1.5, 2.5, 3.5 and 4.5
    assert back("3bit", floats(1.0, 2.0, -3.0, 5.0), np.arange(4), ONE_RANK).tolist() == [1.5, 2.5, -3.5, 4.5]


def test_the_lowest_is_the_tensors_and_the_highest_the_ranks():
    # low 1; the first rank goes to 5 (levels stand for 2 and 4), the second to 3 (1.5 and 2.5)
    assert back("2bit", floats(1.0, 5.0, -2.5, 3.0), np.arange(4), TWO_RANKS).tolist() == [2.0, 4.0, -2.5, 2.5]


def test_equal_magnitudes_are_exact_where_the_scale_is():
    for name in LEVELS:
        assert back(name, floats(1.5, -1.5, 1.5), np.arange(3), ONE_RANK).tolist() == [1.5, -1.5, 1.5]


def test_levels_take_the_shorter_code():
    rest = np.full(63, 0.01, np.float32)
    layout = Layout.of({"m.A": torch.zeros(1, 64)}, {"m.A": torch.zeros(1, 64)})
    rare = coded("8bit", np.append(rest, np.float32(1.0)), layout, *range(64))[1]
    assert rare[8] == 1  # after 8 bytes of signs: most levels are 0 and one is 127, mean 2, so k = 1
    assert len(rare) < 8 + 1 + 56
    even = coded("8bit", np.linspace(0.01, 1, 64, dtype=np.float32), layout, *range(64))[1]
    assert (even[8], len(even)) == (0xFF, 8 + 1 + 56)


@pytest.mark.parametrize("name", LEVELS)
@given(st.lists(usual, min_size=20, max_size=20), st.sets(st.integers(0, 19), min_size=1))
def test_the_error_is_at_most_half_a_level(name, values, chosen):
    kept = np.array(sorted(chosen))
    sent = floats(*values)[kept]
    got = back(name, sent, kept, FOUR_RANKS).astype(np.float64)
    magnitude = np.abs(sent).astype(np.float64)
    assert ((got < 0) == (sent < 0)).all()
    for tensor in (0, 1):
        mine = kept // 10 == tensor
        for rank in np.unique(kept[mine] // 5):
            here = kept // 5 == rank
            # scales are cut to three bits: the lowest down, the highest up, by an eighth at most
            width = (magnitude[here].max() * 9 / 8 - magnitude[mine].min() * 7 / 8) / LEVELS[name]
            assert (np.abs(np.abs(got[here]) - magnitude[here]) <= width / 2 * 1.0001).all()


@pytest.mark.parametrize("name", LEVELS)
def test_numbers_at_the_ends_of_float32(name):
    huge, tiny = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)
    got = back(name, floats(huge, -huge, tiny, -tiny), np.arange(4), ONE_RANK)
    assert np.isfinite(got).all()
    assert got[0] > 0 > got[1]


# -- other bytes -------------------------------------------------------------------------------------------


def decode(name: str, scales: str, data: str, n: int = 4, layout: Layout = ONE_RANK) -> np.ndarray:
    return VALUES[name].decode(memoryview(bytes.fromhex(scales)), memoryview(bytes.fromhex(data)), np.arange(n), layout)


@pytest.mark.parametrize(
    ("name", "scales", "data", "message"),
    [
        ("fp32", "", "00" * 15, "15 bytes of values, 4 in fp32 take 16"),
        ("fp32", "00", "00" * 16, "16 bytes of values"),
        ("bf16", "", "00" * 9, "9 bytes of values, 4 in bf16 take 8"),
        ("ternary", "", "00", "scales are cut off"),
        ("ternary", "0004", "00", "scales are cut off"),
        ("ternary", "000420", "00", "scales are cut off"),  # a parameter that no code has
        ("ternary", "00040080", "00", "hold 1 numbers, expected 0"),
        ("ternary", "fc0300", "00", "not a finite positive number"),  # 0x3fc would be infinity
        ("ternary", "000200", "", "0 bytes of signs for 4 values"),
        ("ternary", "000200", "0000", "2 bytes of signs for 4 values"),
        ("ternary", "000200", "01", "spare bits of the signs"),
        ("2bit", "00040080", "00", "levels are cut off"),
        ("2bit", "00040080", "00ff", "0 bytes of levels, 4 take 1"),
        ("2bit", "00040080", "00ff0000", "2 bytes of levels, 4 take 1"),
        ("2bit", "00040080", "00ff01", "spare bits"),
        ("2bit", "00040080", "0020f0", "Rice parameter 32"),
        ("2bit", "00040080", "000033", "a level is not below 2"),
        ("4bit", "000400", "00ff0000", "too few"),
    ],
)
def test_what_is_no_values(name, scales, data, message):
    with pytest.raises(WireError, match=message):
        decode(name, scales, data)


def test_a_scale_that_would_be_negative():
    # two ranks: 0x001, and a step of -2 (zigzag 3, 0001)
    with pytest.raises(WireError, match="not a finite positive number"):
        decode("ternary", "01000010", "00", 4, TWO_RANKS)


def test_nothing_is_nothing():
    for name in KINDS:
        assert decode(name, "", "", 0).tolist() == []
        with pytest.raises(WireError):
            decode(name, "000000", "", 0)
        with pytest.raises(WireError):
            decode(name, "", "00", 0)


@pytest.mark.parametrize("name", KINDS)
@given(st.binary(max_size=12), st.binary(max_size=24), st.sets(st.integers(0, 19)))
def test_any_bytes_give_numbers_or_a_wire_error(name, scales, data, chosen):
    kept = np.array(sorted(chosen), np.int64)
    try:
        got = VALUES[name].decode(memoryview(scales), memoryview(data), kept, FOUR_RANKS)
    except WireError:
        return
    assert (got.shape, got.dtype) == (kept.shape, np.float32)
    assert name in ("fp32", "bf16") or np.isfinite(got).all()


def test_tags_are_the_formats():
    tags = {"fp32": 1, "bf16": 2, "ternary": 3, "8bit": 4, "4bit": 5, "3bit": 6, "2bit": 7}
    assert {name: kind.tag for name, kind in VALUES.items()} == tags
    assert [name for name, kind in VALUES.items() if kind.exact] == ["fp32"]
