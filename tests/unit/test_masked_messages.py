"""What a client hides, message by message: made of every pair's secret of this round, and uniform to the eye."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from scipy.stats import chisquare

from capfl.maths.masks import Whole, kind_of
from capfl.roles.keyring import Keyring, signed_bytes
from capfl.types import Broadcast, ClientId, Offer
from masked import ids

SCHEMA = b"12345678"
ALPHA = 1e-9  # of each test, of which there are some twenty: one run in 5e7 fails by chance


def plain(client: ClientId, width: int, n: int = 600) -> Whole:
    """Numbers that look like nothing random: all alike."""
    same = 1 + int(client[1:])
    return Whole(np.full(n, same, kind_of(width)), width, np.full(n // 8, same, np.uint32))


def masked(rings: dict[ClientId, Keyring], round: int, width: int) -> dict[ClientId, Whole]:
    """What each client sends of a round."""
    cohort = tuple(ring.offer(round, client, SCHEMA) for client, ring in rings.items())
    asked = Broadcast(round, "", 7, None, (), cohort=cohort)
    for ring in rings.values():
        ring.check(asked, SCHEMA)
    return {client: ring.hide(plain(client, width), asked, SCHEMA) for client, ring in rings.items()}


# -- of what masks are made ------------------------------------------------------------------------------------------


def by_the_book(secret: bytes, other: bytes, width: int, round: int, n: int = 600) -> Whole:
    """A mask as the page on the wire format has it, without any function of capfl."""
    own = X25519PrivateKey.from_private_bytes(secret)
    keys = b"".join(sorted((own.public_key().public_bytes_raw(), other)))
    info = b"capfl mask" + SCHEMA + round.to_bytes(4, "little") + (7).to_bytes(4, "little") + keys
    agreed = own.exchange(X25519PublicKey.from_public_bytes(other))
    key = HKDF(SHA256(), 32, salt=None, info=info).derive(agreed)
    kind = np.dtype(kind_of(width)).newbyteorder("<")
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(n // 8 * 4 + n * kind.itemsize))
    values = np.frombuffer(stream[n // 8 * 4 :], kind) & kind.type((1 << width) - 1)
    return Whole(values, width, np.frombuffer(stream[: n // 8 * 4], "<u4").astype(np.uint32))


@pytest.mark.parametrize("width", [3, 11])
def test_every_pair_has_a_mask_of_its_own_of_this_round_in_both_messages(width: int) -> None:
    """A sum is right also where a pair is left out, or where a mask was in another sum before: this is not."""
    rings = {client: Keyring() for client in ids(5)}
    for round in (1, 2):
        sent = masked(rings, round, width)
        for client, ring in rings.items():
            assert ring._key is not None
            expected = plain(client, width)
            for other, theirs in rings.items():
                if other != client:
                    assert theirs._key is not None
                    mask = by_the_book(ring._key.private, theirs._key.public, width, round)
                    expected = expected.plus(mask, 1 if client < other else -1)
            assert np.array_equal(sent[client].values, expected.values)
            assert np.array_equal(sent[client].numbers, expected.numbers)


def test_no_key_is_of_two_rounds_or_two_clients() -> None:
    rings = {client: Keyring() for client in ids(3)}
    keys = [
        key
        for round in (1, 2, 3)
        for client, ring in rings.items()
        for offer in [ring.offer(round, client, SCHEMA, True)]
        for key in (offer.key, offer.box)
    ]
    assert len(set(keys)) == 18


def test_a_signature_is_of_one_round_run_and_client() -> None:
    offer = Offer("c00", bytes(32), box=bytes([1]) * 32)
    signed = [signed_bytes(1, offer, SCHEMA), signed_bytes(2, offer, SCHEMA), signed_bytes(1, offer, b"87654321")]
    others = {"client": "c01", "key": offer.box, "box": b""}
    signed += [signed_bytes(1, replace(offer, **{name: value}), SCHEMA) for name, value in others.items()]  # type: ignore[arg-type]
    assert len(set(signed)) == 6


# -- what they look like ---------------------------------------------------------------------------------------------


def evenness(seen: list[Whole]) -> tuple[float, float]:
    """Of the values, and of the bytes of the numbers: how likely uniform ones are no more even than these."""
    values = np.bincount(np.concatenate([one.values for one in seen]), minlength=1 << seen[0].width)
    numbers = np.concatenate([one.numbers for one in seen]).view(np.uint8)
    return chisquare(values).pvalue, chisquare(np.bincount(numbers, minlength=256)).pvalue


def looks(rounds: list[dict[ClientId, Whole]]) -> Iterator[Whole]:
    """All that must be uniform of three clients' messages in two rounds: each, and what two of them differ by."""
    for sent in rounds:
        yield from sent.values()
        yield from (sent[a].plus(sent[b], sign) for a, b in combinations(sent, 2) for sign in (1, -1))
    yield from (rounds[0][client].plus(rounds[1][client], -1) for client in rounds[0])


@pytest.mark.parametrize("width", [4, 8])
def test_messages_of_equal_numbers_and_their_differences_are_uniform(width: int) -> None:
    """Over 40 times fresh keys: those of a client, of two clients, and of one client in two rounds."""
    seen = []
    for _ in range(40):
        rings = {client: Keyring() for client in ids(3)}
        seen.append(list(looks([masked(rings, round, width) for round in (1, 2)])))
    for look in zip(*seen, strict=True):
        assert min(evenness(list(look))) > ALPHA
    assert evenness([plain("c00", width)])[0] < ALPHA
    assert evenness([plain("c00", width)])[1] < ALPHA
