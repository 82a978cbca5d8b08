"""The header of every message: who, which round, under which schema, and a checksum.

docs/wire.md has the table of its fields.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

from capfl.errors import WireError
from capfl.types import Adapter

MAGIC = b"CPFL"
VERSION = 4
LARGEST_LOSS = 1e6  # nats a token or an item, that a client may claim: what has diverged is still far below
_FIXED = struct.Struct("<4sBBBBI8sIIdH")
_CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Header:
    """``steps`` of a broadcast is the number of the version that it leads to."""

    kind: int
    values: int
    round: int
    schema: bytes
    client: str
    n_train: int = 0
    steps: int = 0
    loss: float = 0.0


def schema_hash(template: Adapter, base: str) -> bytes:
    """Eight bytes that differ between adapters of different names, shapes or ranks, or for different base models."""
    text = "\n".join([base, *(f"{name} {tuple(t.shape)}" for name, t in template.items())])
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def seal(header: Header, body: bytes) -> bytes:
    """Header, body and checksum as one message."""
    client = header.client.encode()
    fixed = _FIXED.pack(
        MAGIC, VERSION, header.kind, header.values, 0, header.round, header.schema,
        header.n_train, header.steps, header.loss, len(client),
    )  # fmt: skip
    blob = fixed + client + body
    return blob + _CRC.pack(zlib.crc32(blob))


def round_of(blob: bytes) -> int:
    """The round that a message says it is for. Nothing else of it is checked.

    Raises:
        WireError: it is shorter than a header.
    """
    if len(blob) < _FIXED.size + _CRC.size:
        raise WireError(f"message of {len(blob)} bytes is shorter than a header")
    return int(_FIXED.unpack_from(blob)[5])


def unseal(blob: bytes, kind: int, values: int, schema: bytes) -> tuple[Header, memoryview]:
    """Check a message and return its header and body.

    Raises:
        WireError: too short, not ours, of another version, kind or schema, or damaged on the way.
    """
    if len(blob) < _FIXED.size + _CRC.size:
        raise WireError(f"message of {len(blob)} bytes is shorter than a header")
    magic, version, found, tag, reserved, round, hashed, n_train, steps, loss, length = _FIXED.unpack_from(blob)
    if magic != MAGIC:
        raise WireError(f"not a capfl message: it starts with {magic!r}")
    if version != VERSION or reserved != 0:
        raise WireError(f"message of format {version}, this capfl reads {VERSION}; use one version everywhere")
    if _CRC.unpack_from(blob, len(blob) - _CRC.size)[0] != zlib.crc32(memoryview(blob)[: -_CRC.size]):
        raise WireError("checksum does not match: the message was damaged or cut off")
    if found != kind:
        raise WireError(f"message of kind {found} where kind {kind} was expected")
    if hashed != schema:
        raise WireError("message is for another adapter: base model, targets, layers or ranks differ between the sites")
    if tag != values:
        raise WireError(f"message has values of kind {tag}, expected {values}: the sites' codecs differ; align configs")
    end = _FIXED.size + length
    if end > len(blob) - _CRC.size:
        raise WireError(f"client id of {length} bytes does not fit into the message")
    try:
        client = bytes(blob[_FIXED.size : end]).decode()
    except UnicodeDecodeError as error:
        raise WireError("client id is not UTF-8") from error
    return Header(found, tag, round, hashed, client, n_train, steps, loss), memoryview(blob)[end : -_CRC.size]
