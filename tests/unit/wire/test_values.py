"""Values: bytes and roundings by hand, bounds on any numbers, and nothing but WireError for other bytes."""

from __future__ import annotations

import numpy as np
import pytest

from adapters import KINDS
from capfl.errors import WireError
from capfl.wire.layout import Layout
from capfl.wire.values import VALUES

ONE_RANK = Layout((("m.A", (1, 4)),))
TWO_RANKS = Layout((("m.A", (2, 2)),))
FOUR_RANKS = Layout((("m.A", (2, 5)), ("m.B", (5, 2))))  # of five elements each, in two tensors
LEVELS = {"8bit": 128, "4bit": 8, "3bit": 4, "2bit": 2}


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def coded(name: str, values: np.ndarray, layout: Layout, *kept: int, unbiased: bool = False) -> tuple[str, str]:
    scales, data = VALUES[name].encode(values, np.array(kept, np.int64), layout, unbiased)
    return scales.hex(), data.hex()


def back(name: str, values: np.ndarray, layout: Layout, kept: np.ndarray | None = None) -> list[float]:
    kept = np.arange(len(values)) if kept is None else kept
    scales, data = VALUES[name].encode(values, kept, layout, False)
    return VALUES[name].decode(memoryview(scales), memoryview(data), kept, layout).tolist()


# -- by hand -----------------------------------------------------------------------------------------------


def test_plain():
    assert coded("fp32", floats(1.0, -2.0), ONE_RANK, 0, 1) == ("", "0000803f000000c0")
    assert coded("bf16", floats(1.0, 0.1), ONE_RANK, 0, 1) == ("", "803fcd3d")
    # the last is half way, and rounds to even
    assert back("bf16", floats(1.0, 0.1, 1.00390625), ONE_RANK) == [1.0, 0.10009765625, 1.0]


def test_ternary_is_the_mean_magnitude_of_a_rank():
    values = floats(1.0, -3.0, 0.5, -0.5)
    assert back("ternary", values, TWO_RANKS) == [2.0, -2.0, 0.5, -0.5]
    # 2 is 0x200 and 1/2 is 0x1f8: first 0x200, then -8, zigzag 15, under k = 3 a 01 and 111; signs 0101
    assert coded("ternary", values, TWO_RANKS, 0, 1, 2, 3) == ("00020340e0", "50")
    # two bits of mantissa: 1.12 is nearest to 1, 1.13 to 1.25, 7.6 to 8
    for mean, scale in ((1.12, 1.0), (1.13, 1.25), (7.0, 7.0), (7.6, 8.0)):
        assert back("ternary", floats(mean, -mean), ONE_RANK) == [scale, -scale]
    # ranks without values have no scale: 3 is 0x202 and 5 is 0x205, then 3, zigzag 6, under k = 2 a 01 and 10
    assert coded("ternary", floats(3.0, -5.0), FOUR_RANKS, 5, 19)[0] == "0202024080"


def test_zeros():
    """Those that a random mask sends stay zero, or push to both sides alike where their rank has something else."""
    for name in KINDS:
        assert coded(name, floats(0, 0), ONE_RANK, 0, 1, unbiased=True) == coded(name, floats(0, 0), ONE_RANK, 0, 1)
        assert back(name, floats(0, 0, 0, 0), TWO_RANKS) == [0, 0, 0, 0]
    assert back("ternary", floats(0, 0, 4, -4), TWO_RANKS) == [0, 0, 4, -4]
    six = Layout((("m.A", (1, 6)),))
    scales, signs = VALUES["ternary"].encode(floats(0, 0, 0, 0, 2, -2), np.arange(6), six, True)
    got = VALUES["ternary"].decode(memoryview(scales), memoryview(signs), np.arange(6), six)
    assert got.tolist() == [2, -2, 2, -2, 2, -2]


def test_levels():
    values = floats(1.0, 2.0, -3.0, 5.0)
    # from 1 to 5 in two levels of width 2, which stand for 2 and 4, or four of width 1
    assert back("2bit", values, ONE_RANK) == [2.0, 2.0, -4.0, 4.0]
    assert back("3bit", values, ONE_RANK) == [1.5, 2.5, -3.5, 4.5]
    # 1 is 0x3f8 and 5 is 0x40a: first 0x3f8, then 18, zigzag 36, under k = 5 a 01 and 00100
    # signs 0010; levels of fixed width 0011
    assert coded("2bit", values, ONE_RANK, 0, 1, 2, 3) == ("f803054020", "20ff30")
    # low 1 of the tensor; the first rank goes to 5 (levels stand for 2 and 4), the second to 3 (1.5 and 2.5)
    assert back("2bit", floats(1.0, 5.0, -2.5, 3.0), TWO_RANKS) == [2.0, 4.0, -2.5, 2.5]
    for name in LEVELS:  # equal magnitudes are exact where the scale is
        assert back(name, floats(1.5, -1.5, 1.5), ONE_RANK) == [1.5, -1.5, 1.5]


def test_levels_take_the_shorter_code():
    layout = Layout((("m.A", (1, 64)),))
    rare = coded("8bit", np.append(np.full(63, 0.01, np.float32), np.float32(1.0)), layout, *range(64))[1]
    assert rare[16:18] == "01"  # after 8 bytes of signs: most levels are 0 and one is 127, mean 2, so k = 1
    assert len(rare) < 2 * (8 + 1 + 56)
    even = coded("8bit", np.linspace(0.01, 1, 64, dtype=np.float32), layout, *range(64))[1]
    assert (even[16:18], len(even)) == ("ff", 2 * (8 + 1 + 56))


# -- any numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEVELS)
def test_the_error_is_at_most_half_a_level(name):
    rng = np.random.default_rng(0)
    for _ in range(40):
        kept = np.sort(rng.permutation(20)[: rng.integers(1, 21)])
        sent = (rng.normal(size=len(kept)) * 10.0 ** rng.integers(-15, 15, len(kept))).astype(np.float32)
        got, magnitude = np.array(back(name, sent, FOUR_RANKS, kept)), np.abs(sent).astype(np.float64)
        assert ((got < 0) == (sent < 0)).all()
        for rank in np.unique(kept // 5):
            here, mine = kept // 5 == rank, kept // 10 == rank // 2
            # scales are cut to three bits: the lowest down, the highest up, by an eighth at most
            width = (magnitude[here].max() * 9 / 8 - magnitude[mine].min() * 7 / 8) / LEVELS[name]
            assert (np.abs(np.abs(got[here]) - magnitude[here]) <= width / 2 * 1.0001).all()


@pytest.mark.parametrize("name", ["ternary", *LEVELS])
def test_numbers_at_the_ends_of_float32(name):
    huge, tiny = float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)
    got = back(name, floats(huge, -huge, tiny, -tiny), ONE_RANK)
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
        ("ternary", "0004", "00", "do not begin with a Rice parameter"),
        ("ternary", "00040080", "00", "hold 1 numbers, expected 0"),
        ("ternary", "fc0300", "00", "not a finite positive number"),  # 0x3fc would be infinity
        ("ternary", "000200", "", "0 bytes, 4 numbers of 1 bits take 1"),
        ("ternary", "000200", "01", "spare bits"),
        ("2bit", "00040080", "00", "do not begin with a Rice parameter"),
        ("2bit", "00040080", "00ff", "0 bytes, 4 numbers of 1 bits take 1"),
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
