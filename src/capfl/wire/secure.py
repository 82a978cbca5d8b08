"""The messages of secure aggregation: a key for a round, an update under masks, and the secrets that open masks.

A client is asked for a key; it is sent the keys of all whose updates will be summed, with the request to train; and
where some of these do not answer, it is asked for the secrets that it shares with them. Against a malicious server it
is sent the keys first, deals out shares of its secrets, and always says shares in the end. docs/security.md says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from capfl.errors import WireError
from capfl.maths.masks import KEY, Whole, kind_of
from capfl.maths.shares import SHARE
from capfl.types import ClientId, Offer
from capfl.wire import rice
from capfl.wire.codec import Codec
from capfl.wire.header import Header, seal, unseal
from capfl.wire.sections import Section, parts, split, write
from capfl.wire.summed import Summed
from capfl.wire.totals import Totals

T = TypeVar("T")

OFFER, MASKED, OPENED, DEALT, DONE = 6, 7, 8, 9, 10
SEALED = 2 * SHARE + 16  # bytes of two shares, sealed
SIGNATURE = 255  # bytes that a signature may have


@dataclass(frozen=True)
class Offered:
    """Client to server: a key for the updates of one round."""

    round: int
    client: ClientId
    offer: Offer


@dataclass(frozen=True)
class Masked:
    """Client to server: its update, or its scores, as numbers that say nothing without the others'."""

    round: int
    client: ClientId
    whole: Whole


@dataclass(frozen=True)
class Opened:
    """Client to server: the secrets that it shares with some that have not answered; or of everybody a share."""

    round: int
    client: ClientId
    secrets: Mapping[ClientId, bytes]


@dataclass(frozen=True)
class Dealt:
    """Client to server: shares of its secrets, sealed for each of the others, in the order of their ids."""

    round: int
    client: ClientId
    shares: Sequence[bytes]


@dataclass(frozen=True)
class Done:
    """Client to server: it has trained, and nobody else needs what it has learnt."""

    round: int
    client: ClientId


# -- a client's messages -----------------------------------------------------------------------------------


def encode_offered(message: Offered, codec: Codec, schema: bytes) -> bytes:
    """A key. ``codec`` is the run's for updates."""
    offer = message.offer
    keys = offer.key + bytes([len(offer.box)]) + offer.box
    return seal(_header(OFFER, message, codec, schema), write(Section.KEY, keys + offer.signature))


def decode_offered(blob: bytes, codec: Codec, schema: bytes) -> tuple[Offered, dict[str, int]]:
    """The key, and how many bytes belong to each part. Raises WireError: it does not fit."""
    header, found, counted = _unsealed(blob, OFFER, codec, schema, (Section.KEY,))
    data = bytes(found[Section.KEY])
    box = data[KEY] if len(data) > KEY else 1
    signature = data[KEY + 1 + box :]
    if box not in (0, KEY) or len(data) < KEY + 1 + box or len(signature) > SIGNATURE:
        raise WireError(f"{len(data)} bytes are no key with a signature of {SIGNATURE} bytes at most")
    offer = Offer(header.client, data[:KEY], signature, data[KEY + 1 : KEY + 1 + box])
    return Offered(header.round, header.client, offer), counted


def encode_masked(message: Masked, codec: Codec, schema: bytes) -> bytes:
    """An update under masks. Number of items, steps and loss are zero in its header: the last two are in the sum."""
    whole = message.whole
    numbers = write(Section.NUMBERS, whole.numbers.astype("<u4").tobytes())
    values = write(Section.MASKED, rice.pack(whole.values, whole.width))
    return seal(_header(MASKED, message, codec, schema), numbers + values)


def decode_masked(blob: bytes, codec: Codec, schema: bytes, summed: Summed | Totals) -> tuple[Masked, dict[str, int]]:
    """The update, and how many bytes belong to each part. Raises WireError: it is not one of this sum."""
    header, found, counted = _unsealed(blob, MASKED, codec, schema, (Section.NUMBERS, Section.MASKED))
    data = found[Section.NUMBERS]
    if len(data) != 4 * summed.n_numbers:
        raise WireError(f"{len(data)} bytes of numbers, {summed.n_numbers} take {4 * summed.n_numbers}")
    numbers = np.frombuffer(data, "<u4").astype(np.uint32)
    values = rice.unpack(found[Section.MASKED], summed.n_values, summed.width, kind_of(summed.width))
    return Masked(header.round, header.client, Whole(values, summed.width, numbers)), counted


def encode_opened(message: Opened, codec: Codec, schema: bytes) -> bytes:
    """The secrets that a client shares with others, in the order of their ids."""
    data = b"".join(message.secrets[client] for client in sorted(message.secrets))
    return seal(_header(OPENED, message, codec, schema), write(Section.SECRETS, data))


def decode_opened(
    blob: bytes, codec: Codec, schema: bytes, clients: Sequence[ClientId], length: int = KEY
) -> tuple[Opened, dict[str, int]]:
    """The secrets of ``clients``, each of so many bytes, and how many bytes belong to each part.

    Raises:
        WireError: it does not fit.
    """
    header, found, counted = _unsealed(blob, OPENED, codec, schema, (Section.SECRETS,))
    data = bytes(found[Section.SECRETS])
    if len(data) != length * len(clients):
        raise WireError(f"{len(data)} bytes of secrets, {len(clients)} take {length * len(clients)}")
    secrets = {client: data[length * i : length * (i + 1)] for i, client in enumerate(sorted(clients))}
    return Opened(header.round, header.client, secrets), counted


def encode_dealt(message: Dealt, codec: Codec, schema: bytes) -> bytes:
    """Sealed shares."""
    return seal(_header(DEALT, message, codec, schema), write_shares(message.shares))


def decode_dealt(blob: bytes, codec: Codec, schema: bytes, clients: int) -> tuple[Dealt, dict[str, int]]:
    """The shares for so many others, and how many bytes belong to each part. Raises WireError: it does not fit."""
    header, found, counted = _unsealed(blob, DEALT, codec, schema, (Section.SHARES,))
    shares = read_shares(found[Section.SHARES])
    if len(shares) != clients:
        raise WireError(f"shares for {len(shares)} clients, expected {clients}")
    return Dealt(header.round, header.client, shares), counted


def encode_done(message: Done, codec: Codec, schema: bytes) -> bytes:
    """A header alone."""
    return seal(_header(DONE, message, codec, schema), b"")


def decode_done(blob: bytes, codec: Codec, schema: bytes) -> tuple[Done, dict[str, int]]:
    """Who has trained, and how many bytes belong to each part. Raises WireError: it does not fit."""
    header, _, counted = _unsealed(blob, DONE, codec, schema, ())
    return Done(header.round, header.client), counted


def _header(kind: int, message: Offered | Masked | Opened | Dealt | Done, codec: Codec, schema: bytes) -> Header:
    return Header(kind, codec.values.tag, message.round, schema, message.client)


def _unsealed(
    blob: bytes, kind: int, codec: Codec, schema: bytes, sections: tuple[Section, ...]
) -> tuple[Header, dict[Section, memoryview], dict[str, int]]:
    """A message of exactly these sections, and its bytes by part."""
    header, body = unseal(blob, kind, codec.values.tag, schema)
    if header.n_train or header.steps or header.loss:
        raise WireError(f"message of client {header.client!r} says in its header what is to be hidden")
    found, rest = split(body, sections)
    if len(rest) or len(found) < len(sections):
        raise WireError(f"message of client {header.client!r} has not exactly {', '.join(s.name for s in sections)}")
    return header, found, parts(body, len(blob) - len(body))


# -- what the server says beside an adapter ----------------------------------------------------------------


def write_cohort(offers: Sequence[Offer]) -> bytes:
    """The section with the keys of all whose updates will be summed; nothing for none."""
    if not offers:
        return b""
    each = (
        _named(one.client) + one.key + bytes([len(one.box)]) + one.box + bytes([len(one.signature)]) + one.signature
        for one in offers
    )
    return write(Section.COHORT, b"".join(each))


def read_cohort(data: memoryview | None) -> tuple[Offer, ...]:
    """What ``write_cohort`` was given. Raises WireError: it is cut off, or no list of clients by id."""

    def offer(client: ClientId, take: Callable[[int], bytes]) -> Offer:
        key, box = take(KEY), take(take(1)[0])
        if len(box) not in (0, KEY):
            raise WireError(f"a key of {len(box)} bytes in a list of clients")
        return Offer(client, key, take(take(1)[0]), box)

    offers = tuple(_items(data, offer))
    _require_order([o.client for o in offers])
    return offers


def write_gone(clients: Sequence[ClientId]) -> bytes:
    """The section with the clients that have not answered; nothing for none."""
    return write(Section.GONE, b"".join(map(_named, clients))) if clients else b""


def read_gone(data: memoryview | None) -> tuple[ClientId, ...]:
    """What ``write_gone`` was given. Raises WireError: as ``read_cohort``."""
    gone = tuple(_items(data, lambda client, take: client))
    _require_order(gone)
    return gone


def write_shares(shares: Sequence[bytes]) -> bytes:
    """The section with sealed shares, each of ``SEALED`` bytes; nothing for none."""
    return write(Section.SHARES, b"".join(shares)) if shares else b""


def read_shares(data: memoryview | None) -> tuple[bytes, ...]:
    """What ``write_shares`` was given. Raises WireError: they are cut off."""
    whole = bytes(data or b"")
    if len(whole) % SEALED:
        raise WireError(f"{len(whole)} bytes of shares, of which each has {SEALED}")
    return tuple(whole[begin : begin + SEALED] for begin in range(0, len(whole), SEALED))


def _named(client: ClientId) -> bytes:
    name = client.encode()
    return len(name).to_bytes(2, "little") + name


def _items(data: memoryview | None, made: Callable[[ClientId, Callable[[int], bytes]], T]) -> Iterator[T]:
    """Each thing in a section that begins with a client's id. ``made`` takes what follows the id."""
    rest = bytes(data or b"")

    def take(n: int) -> bytes:
        nonlocal rest
        if len(rest) < n:
            raise WireError("a list of clients is cut off")
        taken, rest = rest[:n], rest[n:]
        return taken

    while rest:
        name = take(int.from_bytes(take(2), "little"))
        try:
            client = name.decode()
        except UnicodeDecodeError as error:
            raise WireError("a client id in a list is not UTF-8") from error
        yield made(client, take)


def _require_order(clients: Sequence[ClientId]) -> None:
    if list(clients) != sorted(set(clients)):
        raise WireError("a list of clients is not in the order of their ids, each once")
