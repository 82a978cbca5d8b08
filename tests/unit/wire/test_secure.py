"""Messages of secure aggregation: read by what docs/wire.md says alone, and refused where they are wrong."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from adapters import SMALL, normal, resealed
from capfl.config.schema import CodecConfig
from capfl.errors import WireError
from capfl.maths.masks import PrivateKey
from capfl.roles.keyring import Keyring
from capfl.types import Broadcast, Offer
from capfl.wire import decode_broadcast, encode_broadcast, up_codec
from capfl.wire.secure import (
    SEALED,
    Dealt,
    Done,
    Masked,
    Offered,
    Opened,
    decode_dealt,
    decode_done,
    decode_masked,
    decode_offered,
    decode_opened,
    encode_dealt,
    encode_done,
    encode_masked,
    encode_offered,
    encode_opened,
)  # fmt: skip
from capfl.wire.summed import Summed

CODEC, SCHEMA = up_codec(CodecConfig(values="2bit", density=0.5), 3), b"schema 8"
SUMMED = Summed(CODEC, SMALL, SMALL, 4, 3)
KEYS = {"a": bytes([1] * 32), "b": bytes([2] * 32), "ä": bytes([3] * 32)}
BOXES = {"a": bytes([4] * 32), "b": bytes([5] * 32), "ä": bytes([6] * 32)}


def public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def ring(client: str, shares: bool) -> Keyring:
    """Keys that everybody knows."""
    made = Keyring()
    made.offer(5, client, SCHEMA, shares)
    made._key = PrivateKey(KEYS[client])
    made._box = PrivateKey(BOXES[client]) if shares else None
    made._offer = offers(shares)[sorted(KEYS).index(client)]
    return made


def offers(shares: bool) -> tuple[Offer, ...]:
    return tuple(Offer(c, public(KEYS[c]), box=public(BOXES[c]) if shares else b"") for c in sorted(KEYS))


def agreed(own: bytes, other: bytes, info: bytes) -> bytes:
    """The secret of a pair, as the document has it."""
    key = X25519PrivateKey.from_private_bytes(own)
    both = sorted([key.public_key().public_bytes_raw(), other])
    z = key.exchange(X25519PublicKey.from_public_bytes(other))
    return HKDF(SHA256(), 32, salt=None, info=b"capfl mask" + info + both[0] + both[1]).derive(z)


def stream(secret: bytes, n: int) -> bytes:
    return Cipher(ChaCha20(secret, bytes(16)), mode=None).encryptor().update(bytes(n))


def sections(blob: bytes) -> dict[int, bytes]:
    """The sections of a message, from behind its header."""
    rest = blob[38 + struct.unpack_from("<H", blob, 36)[0] : -4]
    found: dict[int, bytes] = {}
    while rest:
        n = int.from_bytes(rest[1:5], "little")
        found[rest[0]], rest = rest[5 : 5 + n], rest[5 + n :]
    return found


@pytest.mark.parametrize("shares", [False, True])
def test_a_masked_update_is_what_the_document_says(shares: bool) -> None:
    own, message = ring("b", shares), Broadcast(5, "b", 3, None, (), cohort=offers(shares))
    plain = SUMMED.whole(normal(1), 1.5, 6)
    own_mask = b""
    if shares:
        own.deal(message, SCHEMA)
        own_mask = own._own_mask
    else:
        own.check(message, SCHEMA)
    blob = encode_masked(Masked(5, "b", own.hide(plain, message, SCHEMA)), CODEC, SCHEMA)
    assert (blob[5], blob[20:36]) == (7, bytes(16))
    found = sections(blob)
    assert list(found) == [18, 19]

    k, m, n = (3 * 3).bit_length(), len(found[18]) // 4, int(sum(t.numel() for t in SMALL.values()))
    bits = np.unpackbits(np.frombuffer(found[19], np.uint8))
    count = len(plain.values)
    assert count <= n
    values = [int("".join(map(str, bits[i * k : i * k + k])), 2) for i in range(count)]
    numbers = list(struct.unpack(f"<{m}I", found[18]))
    info = SCHEMA + struct.pack("<II", 5, 3)
    masks = [(agreed(KEYS["b"], public(KEYS["a"]), info), -1), (agreed(KEYS["b"], public(KEYS["ä"]), info), 1)]
    for secret, sign in masks + ([(own_mask, 1)] if shares else []):
        key = stream(secret, 4 * m + count)
        numbers = [(x - sign * y) % 2**32 for x, y in zip(numbers, struct.unpack(f"<{m}I", key[: 4 * m]), strict=True)]
        values = [(x - sign * (y % 2**k)) % 2**k for x, y in zip(values, key[4 * m :], strict=True)]
    assert values == plain.values.tolist()
    assert numbers == plain.numbers.tolist()
    assert numbers[-2:] == [round(1.5 * 2**16), 6]


def test_shares_are_what_the_document_says() -> None:
    message = Broadcast(5, "a", 3, None, (), cohort=offers(True))
    rings = {client: ring(client, True) for client in KEYS}
    said = {client: own.deal(message, SCHEMA) for client, own in rings.items()}
    blob = encode_dealt(Dealt(5, "a", said["a"]), CODEC, SCHEMA)
    assert blob[5] == 9
    for_b = sections(blob)[21][:82]
    section = sections(encode_broadcast(message, CODEC, SCHEMA).blob)[14]
    digest = hashlib.sha256(b"\x0e" + len(section).to_bytes(4, "little") + section).digest()
    secret = agreed(BOXES["b"], public(BOXES["a"]), b"shares" + digest + public(BOXES["a"]))
    share = ChaCha20Poly1305(secret).decrypt(bytes(12), for_b, None)
    assert len(share) == 66
    points = {1: rings["a"]._shares["a"], 2: share}
    rings["ä"]._cohort = message.cohort
    rings["ä"].check(Broadcast(5, "ä", 3, None, (), shares=(said["a"][1], said["b"][1])), SCHEMA)
    points[3] = rings["ä"]._shares["a"]
    prime = 2**256 + 297
    for part, whole in ((slice(0, 33), KEYS["a"]), (slice(33, 66), rings["a"]._own_mask)):
        y = {x: int.from_bytes(both[part], "big") for x, both in points.items()}
        assert (3 * y[1] - 3 * y[2] + y[3]) % prime == int.from_bytes(whole, "big")  # a parabola's value at 0


def test_keys_and_lists_of_them() -> None:
    cohort = (Offer("a", b"k" * 32, b"signed"), Offer("ä", b"l" * 32, b"", b"m" * 32))
    assert sections(encode_offered(Offered(5, "a", cohort[0]), CODEC, SCHEMA)) == {13: b"k" * 32 + b"\x00signed"}
    assert sections(encode_offered(Offered(5, "ä", cohort[1]), CODEC, SCHEMA)) == {13: b"l" * 32 + b"\x20" + b"m" * 32}
    message = Broadcast(5, "b", 3, None, (), cohort=cohort, gone=("b", "c"), shares=(b"s" * SEALED,))
    found = sections(encode_broadcast(message, CODEC, SCHEMA).blob)
    listed = (
        b"\x01\x00a" + b"k" * 32 + b"\x00\x06signed" + b"\x02\x00\xc3\xa4" + b"l" * 32 + b"\x20" + b"m" * 32 + b"\x00"
    )
    assert found == {14: listed, 15: b"\x01\x00b\x01\x00c", 21: b"s" * SEALED}
    assert decode_broadcast(encode_broadcast(message, CODEC, SCHEMA).blob, CODEC, SCHEMA) == message


def test_what_is_written_is_read() -> None:
    whole = SUMMED.whole(normal(1), 1.5, 6)
    masked, counted = decode_masked(encode_masked(Masked(5, "a", whole), CODEC, SCHEMA), CODEC, SCHEMA, SUMMED)
    assert np.array_equal(masked.whole.values, whole.values)
    assert np.array_equal(masked.whole.numbers, whole.numbers)
    assert counted["scales"] == 4 * SUMMED.n_numbers
    offered = Offered(5, "a", Offer("a", b"k" * 32, b"s" * 96, b"b" * 32))
    assert decode_offered(encode_offered(offered, CODEC, SCHEMA), CODEC, SCHEMA)[0] == offered
    opened = Opened(5, "a", {"b": b"1" * 33, "c": b"2" * 33})
    assert decode_opened(encode_opened(opened, CODEC, SCHEMA), CODEC, SCHEMA, ["b", "c"], 33)[0] == opened
    assert decode_done(encode_done(Done(5, "a"), CODEC, SCHEMA), CODEC, SCHEMA)[0] == Done(5, "a")
    dealt = Dealt(5, "a", (b"1" * SEALED, b"2" * SEALED))
    assert decode_dealt(encode_dealt(dealt, CODEC, SCHEMA), CODEC, SCHEMA, 2)[0] == dealt


@pytest.mark.parametrize(
    ("made", "read"),
    [
        (encode_offered(Offered(5, "a", Offer("a", b"k" * 31)), CODEC, SCHEMA), decode_offered),
        (encode_offered(Offered(5, "a", Offer("a", b"k" * 32, b"s" * 256)), CODEC, SCHEMA), decode_offered),
        (encode_offered(Offered(5, "a", Offer("a", b"k" * 32, b"", b"b" * 31)), CODEC, SCHEMA), decode_offered),
        (encode_opened(Opened(5, "a", {"b": b"1" * 32}), CODEC, SCHEMA), lambda *to: decode_opened(*to, ["b", "c"])),
        (encode_dealt(Dealt(5, "a", [b"1" * SEALED]), CODEC, SCHEMA), lambda *to: decode_dealt(*to, 2)),
        (encode_dealt(Dealt(5, "a", [b"1" * 81]), CODEC, SCHEMA), lambda *to: decode_dealt(*to, 1)),
        (encode_dealt(Dealt(5, "a", []), CODEC, SCHEMA), lambda *to: decode_dealt(*to, 0)),
        (encode_dealt(Dealt(5, "a", []), CODEC, SCHEMA), decode_done),
        (resealed(encode_done(Done(5, "a"), CODEC, SCHEMA), 20, b"\x07"), decode_done),  # items
    ],
)
def test_a_message_of_another_length_is_refused(made: bytes, read: Any) -> None:
    with pytest.raises(WireError):
        read(made, CODEC, SCHEMA)


@pytest.mark.parametrize(
    "cohort",
    [
        (Offer("b", b"k" * 32), Offer("a", b"l" * 32)),  # in another order
        (Offer("a", b"k" * 32), Offer("a", b"l" * 32)),
        (Offer("a", b"k" * 31),),
        (Offer("a", b"k" * 32, b"", b"b"),),
    ],
)
def test_a_list_that_is_none_is_refused(cohort: tuple[Offer, ...]) -> None:
    blob = encode_broadcast(Broadcast(5, "b", 3, None, (), cohort=cohort), CODEC, SCHEMA).blob
    with pytest.raises(WireError, match="list"):
        decode_broadcast(blob, CODEC, SCHEMA)


def test_every_cut_of_a_message_is_refused() -> None:
    """Sealed again, so that no checksum says so."""
    blob = encode_masked(Masked(5, "a", SUMMED.whole(normal(1), 1.5, 6)), CODEC, SCHEMA)
    asked = encode_broadcast(Broadcast(5, "b", 3, None, (), cohort=offers(True), gone=("c",)), CODEC, SCHEMA).blob
    for n in range(39, len(blob) - 4):
        with pytest.raises(WireError):
            decode_masked(resealed(blob[:n] + b"....", 0), CODEC, SCHEMA, SUMMED)
    ends = {39, 39 + 5 + len(sections(asked)[14])}
    for n in set(range(39, len(asked) - 4)) - ends:
        with pytest.raises(WireError):
            decode_broadcast(resealed(asked[:n] + b"....", 0), CODEC, SCHEMA)
