"""What travels between the server and the nodes: capfl's bytes in one record, which no averaging can take apart.

A request or a reply is a line of JSON and, after it, a message of ``capfl.wire``. Flower carries the two as one value:
in a record of settings while they are short, because each part of a message takes two requests of its own, and as an
array, in pieces, when they are long. Its strategies average neither: they want arrays, and of a type that they know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from capfl.errors import WireError
from capfl.types import ClientId, Kind

NAME, TYPE = "capfl", "capfl.message"
SHORT = 2**20  # bytes; Flower holds a setting in memory several times over

MESSAGE_TYPES: Mapping[Kind | Literal["hello"], str] = {
    "hello": "query",
    "train": "train",
    "validate": "evaluate.validate",
    "evaluate": "evaluate",
}


@dataclass(frozen=True)
class Ask:
    """Server to node. ``hello`` comes first and asks whose node this is; it has no client and no blob."""

    run: str  # stays the same when the run is resumed
    kind: Kind | Literal["hello"]
    method: str = ""
    round: int = 0
    client: ClientId = ""
    used: int = 0  # round of the client's last update that the server used: what came after did not happen
    blob: bytes = b""


@dataclass(frozen=True)
class Reply:
    """Node to server: the answer, or why there is none."""

    client: ClientId
    stage: str = ""  # of a failure
    reason: str = ""
    blob: bytes = b""


Said = TypeVar("Said", Ask, Reply)


def pack(message: Ask | Reply) -> RecordDict:
    header = {key: value for key, value in vars(message).items() if key != "blob"}
    data = json.dumps(header, separators=(",", ":")).encode() + b"\n" + message.blob
    if len(data) <= SHORT:
        return RecordDict({NAME: ConfigRecord({NAME: data})})
    return RecordDict({NAME: ArrayRecord({NAME: Array(dtype="bytes", shape=(len(data),), stype=TYPE, data=data)})})


def unpack(kind: type[Said], content: RecordDict) -> Said:
    """What ``pack`` was given.

    Raises:
        WireError: it was not made by ``pack``, or of another kind.
    """
    try:
        header, _, blob = _carried(content[NAME]).partition(b"\n")
        return kind(**json.loads(header), blob=blob)
    except (KeyError, ValueError, TypeError) as error:
        raise WireError(f"a message of the network cannot be read: {type(error).__name__}: {error}") from error


def _carried(record: Mapping[str, Any]) -> bytes:
    value = record[NAME]
    if isinstance(value, Array):
        if value.stype != TYPE:
            raise WireError(f"a record of type {value.stype!r} is none of capfl's")
        value = value.data
    if not isinstance(value, bytes):
        raise WireError(f"a value of type {type(value).__name__!r} is none of capfl's")
    return value
