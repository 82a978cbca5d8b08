"""Broadcasts, introductions and updates as bytes. A message that does not fit raises WireError and changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from capfl.errors import WireError
from capfl.types import Adapter, Broadcast, Introduction, Update
from capfl.wire import records
from capfl.wire.codec import Codec
from capfl.wire.header import LARGEST_LOSS, Header, seal, unseal
from capfl.wire.sections import Section, parts, read, split, write
from capfl.wire.secure import read_cohort, read_gone, read_shares, write_cohort, write_gone, write_shares

BROADCAST, UPDATE, INTRODUCTION = 1, 2, 5
_RECORDS = (Section.GROUPING, Section.RANKING)
_SECURE = (Section.COHORT, Section.GONE, Section.SHARES)


@dataclass(frozen=True)
class Message:
    """Bytes, and how many of them belong to each part of the ledger."""

    blob: bytes
    parts: dict[str, int]


@dataclass(frozen=True)
class Records:
    """The classes of the records (``wire.records``) that messages have in one direction; None: no record."""

    grouping: type[Any] | None = None
    ranks: type[Any] | None = None


NO_RECORDS = Records()


def encode_broadcast(message: Broadcast, codec: Codec, schema: bytes, missed: bool = False) -> Message:
    """A broadcast whose bodies have been encoded.

    Args:
        missed: has the client missed the round before? Then all but the newest difference is catching up.
    """
    body = b"".join(write(Section.DIFFERENCE, difference) for difference in message.differences)
    if message.state is not None:
        body = write(Section.STATE, message.state)
    beside = _write_records(message.grouping, message.ranks)
    beside += write_cohort(message.cohort) + write_gone(message.gone) + write_shares(message.shares)
    header = Header(BROADCAST, codec.values.tag, message.round, schema, message.client, steps=message.version)
    blob = seal(header, beside + body)
    bodies = [*message.differences] if message.state is None else [message.state]
    newest = 1 if message.state is None else 0
    late, punctual = (bodies[: len(bodies) - newest], bodies[len(bodies) - newest :]) if missed else ([], bodies)
    counted = parts(beside + b"".join(punctual)) | {"catch-up": sum(map(len, late))}
    return Message(blob, counted | {"header": len(blob) - sum(n for part, n in counted.items() if part != "header")})


def decode_broadcast(blob: bytes, codec: Codec, schema: bytes, kinds: Records = NO_RECORDS) -> Broadcast:
    """The bodies inside are decoded by ``downlink.receive``, which knows what they are applied to."""
    header, body = unseal(blob, BROADCAST, codec.values.tag, schema)
    beside, body = split(body, (*_RECORDS, *_SECURE))
    sections = list(read(body, (Section.DIFFERENCE, Section.STATE)))
    states = [bytes(data) for tag, data in sections if tag is Section.STATE]
    if states and len(sections) > 1:
        raise WireError("message has a whole adapter and something else")
    if not states and len(sections) > header.steps:
        raise WireError(f"message that leads to version {header.steps} has {len(sections)} differences")
    differences = () if states else tuple(bytes(data) for _, data in sections)
    grouping, ranks = _read_records(beside, kinds)
    state = states[0] if states else None
    cohort, gone = read_cohort(beside.get(Section.COHORT)), read_gone(beside.get(Section.GONE))
    shares = read_shares(beside.get(Section.SHARES))
    return Broadcast(
        header.round, header.client, header.steps, state, differences, grouping, ranks, cohort, gone, shares
    )


def encode_introduction(message: Introduction, codec: Codec, schema: bytes) -> bytes:
    """An introduction; ``codec`` is the run's for updates."""
    header = Header(INTRODUCTION, codec.values.tag, message.round, schema, message.client, message.n_train)
    return seal(header, _write_records(message.grouping, None))


def decode_introduction(
    blob: bytes, codec: Codec, schema: bytes, kinds: Records = NO_RECORDS
) -> tuple[Introduction, dict[str, int]]:
    """The introduction, and how many bytes belong to each part. Raises WireError: it does not fit."""
    header, body = unseal(blob, INTRODUCTION, codec.values.tag, schema)
    _check(header, "introduction")
    beside, rest = split(body, (Section.GROUPING,))
    if len(rest):
        raise WireError(f"introduction of client {header.client!r} has more than a description")
    grouping, _ = _read_records(beside, kinds)
    return Introduction(header.round, header.client, header.n_train, grouping), parts(body, len(blob) - len(body))


def encode_update(message: Update, body: bytes, codec: Codec, schema: bytes) -> bytes:
    """An update whose adapter has been encoded as ``body``."""
    header = Header(
        UPDATE, codec.values.tag, message.round, schema, message.client, message.n_train, message.steps, message.loss
    )
    return seal(header, _write_records(None, message.ranks) + body)


def decode_update(
    blob: bytes, codec: Codec, schema: bytes, template: Adapter, number: int, kinds: Records = NO_RECORDS
) -> tuple[Update, dict[str, int]]:
    """The update, and how many bytes belong to each part.

    Args:
        number: of the version that comes after the one that the client was sent; it draws random masks.
    """
    header, body = unseal(blob, UPDATE, codec.values.tag, schema)
    _check(header, "update")
    if not 0 <= header.loss <= LARGEST_LOSS:
        raise WireError(f"update of client {header.client!r} has loss {header.loss}")
    beside, rest = split(body, (Section.RANKING,))
    adapter = codec.decode(rest, template, number)
    _, ranks = _read_records(beside, kinds)
    update = Update(header.round, header.client, adapter, header.n_train, header.steps, header.loss, ranks, bytes(rest))
    return update, parts(body, len(blob) - len(body))


def _check(header: Header, what: str) -> None:
    if header.round < 1:
        raise WireError(f"{what} of client {header.client!r} is for round 0, rounds count from 1")
    if header.n_train < 1:
        raise WireError(f"{what} of client {header.client!r} says that it has no training items")


def _write_records(grouping: object | None, ranks: object | None) -> bytes:
    said: Any = zip(_RECORDS, (grouping, ranks), strict=True)
    return b"".join(write(tag, records.write(record)) for tag, record in said if record is not None)


def _read_records(found: dict[Section, memoryview], kinds: Records) -> tuple[Any, Any]:
    said: list[Any] = []
    for tag, kind in zip(_RECORDS, (kinds.grouping, kinds.ranks), strict=True):
        if tag in found and kind is None:
            raise WireError(f"message has a section {tag.name}, which the run's method does not use")
        said.append(records.read(found[tag], kind) if kind is not None and tag in found else None)
    return said[0], said[1]
