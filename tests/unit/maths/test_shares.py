"""Shares of a secret: enough of them give it back, and one fewer gives anything."""

from __future__ import annotations

import itertools
import os

import pytest

from capfl.maths.shares import PRIME, SHARE, joined, shared, threshold


def test_the_modulus_is_prime() -> None:
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29):  # Miller and Rabin
        odd, twos = PRIME - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        x = pow(base, odd, PRIME)
        assert x in (1, PRIME - 1) or any(pow(x, 2**i, PRIME) == PRIME - 1 for i in range(twos))


@pytest.mark.parametrize(("n", "t"), [(3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (30, 21)])
def test_more_than_two_thirds_give_the_secret_back(n: int, t: int) -> None:
    secret = os.urandom(32)
    shares = dict(enumerate(shared(secret, n), 1))
    assert threshold(n) == t
    assert {len(share) for share in shares.values()} == {SHARE}
    chosen = list(itertools.islice(itertools.combinations(shares, t), 20))
    for some in [*chosen, tuple(shares)]:
        assert joined({i: shares[i] for i in some}) == secret
    with pytest.raises(ValueError, match="of no secret"):
        joined({1: bytes([1, *bytes(31), 200])})  # 2^256 + 200 itself


def test_one_share_fewer_fits_any_secret() -> None:
    """There is a polynomial through t - 1 shares and whatever secret."""
    shares = dict(enumerate(shared(bytes(32), 4), 1))
    for secret in (os.urandom(32), os.urandom(32)):
        third = _through({0: secret, 1: shares[1], 2: shares[2]}, 3)
        assert joined({1: shares[1], 2: shares[2], 3: third}) == secret


def _through(points: dict[int, bytes], x: int) -> bytes:
    total = 0
    for i, value in points.items():
        over = under = 1
        for j in points:
            if j != i:
                over, under = over * (x - j) % PRIME, under * (i - j) % PRIME
        total += int.from_bytes(value, "big") * over * pow(under, -1, PRIME)
    return (total % PRIME).to_bytes(SHARE, "big")
