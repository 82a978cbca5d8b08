"""Masks: they cancel, look like nothing, and depend on both keys and on what they are for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.stats import chisquare

from capfl.errors import ConfigError
from capfl.maths.masks import PrivateKey, Whole, kind_of, masked
from masked import expanded


def whole(values: list[int], width: int, numbers: list[int]) -> Whole:
    return Whole(np.array(values, kind_of(width)), width, np.array(numbers, np.uint32))


def test_sums_wrap_around_at_their_own_widths() -> None:
    a, b = whole([0, 5, 7], 3, [1, 2**32 - 1]), whole([1, 6, 7], 3, [2, 3])
    total = a.plus(b)
    assert (total.values.tolist(), total.numbers.tolist()) == ([1, 3, 6], [3, 2])
    back = total.plus(b, -1)
    assert (back.values.tolist(), back.numbers.tolist()) == (a.values.tolist(), a.numbers.tolist())


@pytest.mark.parametrize("other", [whole([1], 4, [1]), whole([1, 2], 3, [1]), whole([1], 3, [])])
def test_numbers_of_another_shape_have_no_sum(other: Whole) -> None:
    with pytest.raises(ValueError, match="have no sum"):
        whole([1], 3, [1]).plus(other)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 9, 13, 31])
def test_a_mask_fills_its_width_evenly_and_a_hidden_zero_looks_like_it(width: int) -> None:
    mask = expanded(bytes(32), 4096, width, 64)
    assert mask.values.dtype == kind_of(width)
    hidden = whole([0] * 4096, width, [0] * 64).plus(mask, -1)
    for values in (mask.values, hidden.values):
        top = values >> max(0, width - 3)  # the highest bits: eight classes at most
        assert chisquare(np.bincount(top, minlength=2 ** min(3, width))).pvalue > 1e-4
        assert int(values.max()) < 2**width
    bits = np.unpackbits(mask.numbers.view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.05


@pytest.mark.parametrize("width", [5, 11, 20])
def test_masks_add_up_to_what_each_would_do_and_leave_alone_what_they_hide(width: int) -> None:
    plain = whole([1, 2, 3], width, [4])
    secrets = [bytes([k]) * 32 for k in (1, 2, 3)]
    hidden = masked(plain, zip(secrets, (1, -1, -1), strict=True))
    expected = plain
    for secret, sign in zip(secrets, (1, -1, -1), strict=True):
        expected = expected.plus(expanded(secret, 3, width, 1), sign)
    assert (hidden.values.tolist(), hidden.numbers.tolist()) == (expected.values.tolist(), expected.numbers.tolist())
    assert hidden.values.dtype == kind_of(width)
    assert (plain.values.tolist(), plain.numbers.tolist()) == ([1, 2, 3], [4])
    assert masked(whole([], width, [9]), [(secrets[0], 1), (secrets[0], -1)]).numbers.tolist() == [9]


def test_the_two_of_a_pair_have_one_secret_for_one_purpose() -> None:
    a, b, c = PrivateKey(), PrivateKey(), PrivateKey()
    ours = a.secret(b.public, b"round 1")
    assert len(ours) == 32
    assert b.secret(a.public, b"round 1") == ours
    others = {a.secret(b.public, b"round 2"), a.secret(c.public, b"round 1"), c.secret(b.public, b"round 1")}
    assert len(others | {ours}) == 4
    assert not np.array_equal(expanded(ours, 100, 8, 1).values, expanded(others.pop(), 100, 8, 1).values)


def test_a_point_of_low_order_is_no_key() -> None:
    with pytest.raises(ValueError, match="shared key"):
        PrivateKey().secret(bytes(32), b"")


def test_the_key_stream_is_that_of_chacha20() -> None:
    """RFC 8439, appendix A.1, test vector 1: key, counter and nonce of zeros."""
    assert expanded(bytes(32), 4, 8, 1).numbers.tobytes().hex() == "76b8e0ad"
    assert expanded(bytes(32), 4, 8, 1).values.tobytes().hex() == "a0f13d90"


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError, match=r"pip install 'capfl\[encryption\]'"):
        PrivateKey()
