"""Typed messages to bytes and back. A message that does not fit raises WireError and changes nothing."""

from __future__ import annotations

import math

from capfl.errors import WireError
from capfl.types import Adapter, Broadcast, Update
from capfl.wire.codec import Codec
from capfl.wire.header import Header, schema_hash, seal, unseal

BROADCAST, UPDATE = 1, 2


def encode_broadcast(message: Broadcast, codec: Codec, template: Adapter) -> bytes:
    header = Header(BROADCAST, codec.tag, message.round, schema_hash(template), message.client)
    return seal(header, codec.encode(message.adapter, template))


def decode_broadcast(blob: bytes, codec: Codec, template: Adapter) -> Broadcast:
    header, adapter = _decode(blob, BROADCAST, codec, template)
    return Broadcast(header.round, header.client, adapter)


def encode_update(message: Update, codec: Codec, template: Adapter) -> bytes:
    header = Header(
        UPDATE, codec.tag, message.round, schema_hash(template), message.client,
        message.n_train, message.steps, message.loss,
    )  # fmt: skip
    return seal(header, codec.encode(message.adapter, template))


def decode_update(blob: bytes, codec: Codec, template: Adapter) -> Update:
    header, adapter = _decode(blob, UPDATE, codec, template)
    if header.n_train < 1:
        raise WireError(f"update of client {header.client!r} says that it has no training items")
    if not math.isfinite(header.loss):
        raise WireError(f"update of client {header.client!r} has loss {header.loss}")
    return Update(header.round, header.client, adapter, header.n_train, header.steps, header.loss)


def _decode(blob: bytes, kind: int, codec: Codec, template: Adapter) -> tuple[Header, Adapter]:
    header, body = unseal(blob, kind, schema_hash(template))
    if header.values != codec.tag:
        raise WireError(f"message has codec tag {header.values}, expected {codec.tag} ({codec.name}): align configs")
    return header, codec.decode(body, template)
