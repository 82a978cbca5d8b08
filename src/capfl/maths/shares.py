r"""Shares of a secret: so many of them give it back, and fewer say nothing about it.

The secret is the value at 0 of a random polynomial of degree t - 1 over a prime field, and a share is its value at 1,
2, ...: Shamir, How to share a secret, Communications of the ACM 22(11), 1979.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

PRIME = 2**256 + 297  # the smallest one above every secret of 32 bytes
SHARE = 33  # bytes


def threshold(n: int) -> int:
    """How many of n shares it takes: more than two thirds.

    Whoever answers for a client one of two secrets, and never both, cannot be led to give away both of anybody: that
    would take 2 t > n answers.
    """
    return 2 * n // 3 + 1


def fewest_opened(n: int) -> int:
    """Of n clients, the fewest whose sum a server that lies can open, if none of them helps it.

    It learns n answers about each, and so the keys of n (n - t) / t at most, however it contradicts itself.
    """
    t = threshold(n)
    return n - n * (n - t) // t


def shared(secret: bytes, n: int) -> list[bytes]:
    """n shares, 33 bytes each, of a secret of 32 bytes, ``threshold(n)`` of which give it back."""
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold(n) - 1))]
    found = []
    for x in range(1, n + 1):
        value = 0
        for coefficient in reversed(polynomial):
            value = (value * x + coefficient) % PRIME
        found.append(value.to_bytes(SHARE, "big"))
    return found


def joined(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from shares by their number 1, 2, ...: at least ``threshold(n)`` of the n that there were.

    Raises:
        ValueError: they are no shares of a secret of 32 bytes.
    """
    total = 0
    for i, share in shares.items():
        over = under = 1
        for j in shares:
            if j != i:
                over, under = over * j % PRIME, under * (j - i) % PRIME
        total = (total + int.from_bytes(share, "big") * over * pow(under, -1, PRIME)) % PRIME
    if total >> 256:
        raise ValueError("the shares are of no secret")
    return total.to_bytes(32, "big")
