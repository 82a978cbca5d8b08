"""Typed messages to bytes and back. A message that does not fit raises WireError and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capfl.errors import WireError
from capfl.types import Adapter, Broadcast, Update
from capfl.wire import records
from capfl.wire.codec import Codec
from capfl.wire.header import LARGEST_LOSS, Header, seal, unseal
from capfl.wire.sections import HEAD, Section, parts, read, write

BROADCAST, UPDATE = 1, 2


@dataclass(frozen=True)
class Message:
    """Bytes, and how many of them belong to each part of the ledger."""

    blob: bytes
    parts: dict[str, int]


@dataclass(frozen=True)
class Records:
    """The classes of the records (``wire.records``) that stand beside an adapter in one direction; None: no record."""

    grouping: type[Any] | None = None
    ranks: type[Any] | None = None


NO_RECORDS = Records()


def encode_broadcast(message: Broadcast, codec: Codec, schema: bytes, always_whole: bool | None = None) -> Message:
    """A broadcast whose bodies have been encoded.

    Args:
        always_whole: is everybody sent the whole adapter, or is that catching up? By default if the codec is exact.
    """
    always_whole = codec.exact if always_whole is None else always_whole
    header = Header(BROADCAST, codec.values.tag, message.round, schema, message.client)
    body = b"".join(write(Section.DIFFERENCE, d) for d in message.differences)
    if message.state is not None:
        body = write(Section.STATE, message.state)
    beside = _records(message)
    blob = seal(header, beside + body)
    late = list(message.differences[:-1])  # what a client that takes part in every round would not be sent
    punctual = list(message.differences[-1:])
    if message.state is not None:
        (punctual if always_whole else late).append(message.state)
    counted = parts(beside + b"".join(punctual)) | {"catch-up": sum(map(len, late))}
    return Message(blob, counted | {"header": len(blob) - sum(n for part, n in counted.items() if part != "header")})


def decode_broadcast(blob: bytes, codec: Codec, schema: bytes, kinds: Records = NO_RECORDS) -> Broadcast:
    """The bodies inside are decoded by ``downlink.receive``, which knows what they are applied to."""
    header, body = unseal(blob, BROADCAST, codec.values.tag, schema)
    beside, body = split_records(body)
    sections = list(read(body, (Section.DIFFERENCE, Section.STATE)))
    states = [bytes(data) for tag, data in sections if tag is Section.STATE]
    if states and len(sections) > 1:
        raise WireError("message has a whole adapter and something else")
    if len(sections) >= header.round:
        raise WireError(f"message of round {header.round} has {len(sections)} differences")
    differences = () if states else tuple(bytes(data) for _, data in sections)
    grouping, ranks = _read_records(beside, kinds)
    return Broadcast(header.round, header.client, states[0] if states else None, differences, grouping, ranks)


def encode_update(message: Update, body: bytes, codec: Codec, schema: bytes) -> bytes:
    """An update whose adapter has been encoded as ``body``."""
    header = Header(
        UPDATE, codec.values.tag, message.round, schema, message.client, message.n_train, message.steps, message.loss
    )
    return seal(header, _records(message) + body)


def decode_update(
    blob: bytes, codec: Codec, schema: bytes, template: Adapter, kinds: Records = NO_RECORDS
) -> tuple[Update, dict[str, int]]:
    """The update, and how many bytes belong to each part."""
    header, body = unseal(blob, UPDATE, codec.values.tag, schema)
    if header.round < 1:
        raise WireError(f"update of client {header.client!r} is for round 0, rounds count from 1")
    if header.n_train < 1:
        raise WireError(f"update of client {header.client!r} says that it has no training items")
    if not 0 <= header.loss <= LARGEST_LOSS:
        raise WireError(f"update of client {header.client!r} has loss {header.loss}")
    beside, rest = split_records(body)
    adapter = codec.decode(rest, template, header.round)
    grouping, ranks = _read_records(beside, kinds)
    counted = parts(body)
    counted["header"] += len(blob) - len(body)
    update = Update(
        header.round, header.client, adapter, header.n_train, header.steps, header.loss, grouping, ranks, bytes(rest)
    )
    return update, counted


_BESIDE = (Section.GROUPING, Section.RANKING)


def split_records(body: memoryview) -> tuple[dict[Section, memoryview], memoryview]:
    """The data of the records, which come first, and the rest of a body."""
    found: dict[Section, memoryview] = {}
    while len(body) and body[0] in _BESIDE:
        tag, data = next(read(body, _BESIDE))
        if any(tag <= before for before in found):
            raise WireError(f"section {tag.name} comes twice or in the wrong place")
        found[tag] = data
        body = body[HEAD + len(data) :]
    return found, body


def _records(message: Broadcast | Update) -> bytes:
    said: tuple[tuple[Section, Any], ...] = ((Section.GROUPING, message.grouping), (Section.RANKING, message.ranks))
    written = ((tag, records.write(record)) for tag, record in said)
    return b"".join(write(tag, data) for tag, data in written if data)


def _read_records(found: dict[Section, memoryview], kinds: Records) -> tuple[Any, Any]:
    read = []
    for tag, kind in ((Section.GROUPING, kinds.grouping), (Section.RANKING, kinds.ranks)):
        if tag in found and kind is None:
            raise WireError(f"message has a section {tag.name}, which the run's method does not use")
        read.append(records.read(found[tag], kind) if kind is not None and tag in found else None)
    return read[0], read[1]
