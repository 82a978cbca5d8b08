"""Typed messages to bytes and back. A message that does not fit raises WireError and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capfl.errors import WireError
from capfl.types import Adapter, Broadcast, NoteKind, Notes, Update
from capfl.wire import notes
from capfl.wire.codec import Codec
from capfl.wire.header import LARGEST_LOSS, Header, seal, unseal
from capfl.wire.sections import HEAD, Section, parts, read, write

BROADCAST, UPDATE = 1, 2
Kinds = Mapping[str, NoteKind]
NO_NOTES: Kinds = {}


@dataclass(frozen=True)
class Message:
    """Bytes, and how many of them belong to each part of the ledger."""

    blob: bytes
    parts: dict[str, int]


def encode_broadcast(
    message: Broadcast, codec: Codec, schema: bytes, kinds: Kinds = NO_NOTES, always_whole: bool | None = None
) -> Message:
    """A broadcast whose bodies have been encoded.

    Args:
        always_whole: is everybody sent the whole adapter, or is that catching up? By default if the codec is exact.
    """
    always_whole = codec.exact if always_whole is None else always_whole
    header = Header(BROADCAST, codec.values.tag, message.round, schema, message.client)
    body = b"".join(write(Section.DIFFERENCE, d) for d in message.differences)
    if message.state is not None:
        body = write(Section.STATE, message.state)
    noted = _section(message.notes, kinds)
    blob = seal(header, noted + body)
    late = list(message.differences[:-1])  # what a client that takes part in every round would not be sent
    punctual = list(message.differences[-1:])
    if message.state is not None:
        (punctual if always_whole else late).append(message.state)
    counted = parts(noted + b"".join(punctual)) | {"catch-up": sum(map(len, late))}
    return Message(blob, counted | {"header": len(blob) - sum(n for part, n in counted.items() if part != "header")})


def decode_broadcast(blob: bytes, codec: Codec, schema: bytes, kinds: Kinds = NO_NOTES) -> Broadcast:
    """The bodies inside are decoded by ``downlink.receive``, which knows what they are applied to."""
    header, body = unseal(blob, BROADCAST, codec.values.tag, schema)
    noted, body = split_notes(body)
    sections = list(read(body, (Section.DIFFERENCE, Section.STATE)))
    states = [bytes(data) for tag, data in sections if tag is Section.STATE]
    if states and len(sections) > 1:
        raise WireError("message has a whole adapter and something else")
    if len(sections) >= header.round:
        raise WireError(f"message of round {header.round} has {len(sections)} differences")
    differences = () if states else tuple(bytes(data) for _, data in sections)
    return Broadcast(header.round, header.client, states[0] if states else None, differences, notes.read(noted, kinds))


def encode_update(message: Update, body: bytes, codec: Codec, schema: bytes, kinds: Kinds = NO_NOTES) -> bytes:
    """An update whose adapter has been encoded as ``body``."""
    header = Header(
        UPDATE, codec.values.tag, message.round, schema, message.client, message.n_train, message.steps, message.loss
    )
    return seal(header, _section(message.notes, kinds) + body)


def decode_update(
    blob: bytes, codec: Codec, schema: bytes, template: Adapter, kinds: Kinds = NO_NOTES
) -> tuple[Update, dict[str, int]]:
    """The update, and how many bytes belong to each part."""
    header, body = unseal(blob, UPDATE, codec.values.tag, schema)
    if header.round < 1:
        raise WireError(f"update of client {header.client!r} is for round 0, rounds count from 1")
    if header.n_train < 1:
        raise WireError(f"update of client {header.client!r} says that it has no training items")
    if not 0 <= header.loss <= LARGEST_LOSS:
        raise WireError(f"update of client {header.client!r} has loss {header.loss}")
    noted, rest = split_notes(body)
    adapter = codec.decode(rest, template, header.round)
    told = notes.read(noted, kinds)
    counted = parts(body)
    counted["header"] += len(blob) - len(body)
    update = Update(header.round, header.client, adapter, header.n_train, header.steps, header.loss, told, bytes(rest))
    return update, counted


def split_notes(body: memoryview) -> tuple[memoryview, memoryview]:
    """The data of the notes, which come first, and the rest of a body."""
    if not len(body) or body[0] != Section.NOTES:
        return body[:0], body
    _, data = next(read(body, (Section.NOTES,)))
    return data, body[HEAD + len(data) :]


def _section(said: Notes, kinds: Kinds) -> bytes:
    return write(Section.NOTES, notes.write(said, kinds)) if said else b""
