"""Requests of the server and replies of the nodes, as records of Flower.

A message is a record of settings: typed values, of which nothing is parsed. The bytes of ``capfl.wire`` are one of
them while they are short; long ones are an array, which Flower moves in pieces. Whoever reads a message trusts nothing
in it: types, lengths and characters are checked here and nowhere else.
"""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from capfl.engines.flower.names import NAME
from capfl.errors import PUBLIC, WireError
from capfl.types import Kind

RECORD, LONG, TYPE = "capfl", "capfl.body", "capfl.message"
SHORT = 2**20  # bytes; Flower holds a setting in memory several times over
HERE = importlib.metadata.version("capfl")

STRICT = ConfigDict(strict=True, extra="forbid")
Word = Annotated[str, Field(pattern=f"^{NAME}$")]
Count = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True, config=STRICT)
class Request:
    """Server to node."""

    run: Word  # stays the same when the run is resumed
    kind: Kind
    method: Word
    round: Count
    client: Word
    used: Count  # round of the client's last update that the server used: later ones were lost
    body: bytes
    capfl: Word = HERE


@dataclass(frozen=True, config=STRICT)
class Reply:
    """Node to server: the body, or the code of the error in its place."""

    client: Word
    code: Annotated[str, Field(pattern="^[a-z]{0,99}$")] = ""
    body: bytes = b""
    capfl: Word = HERE


Made = TypeVar("Made", Request, Reply)


def pack(message: Request | Reply) -> RecordDict:
    values = dict(vars(message))
    if len(message.body) <= SHORT:
        return RecordDict({RECORD: ConfigRecord(values)})
    body = Array(dtype="bytes", shape=(len(message.body),), stype=TYPE, data=values.pop("body"))
    return RecordDict({RECORD: ConfigRecord(values), LONG: ArrayRecord({LONG: body})})


def read_request(message: Message) -> Request:
    """The request in a message. Raises WireError: it is not one, or of another version of capfl."""
    request = _read(Request, message, None)
    if request.capfl != HERE:
        raise WireError(f"the server has capfl {request.capfl}; this site has {HERE}")
    return request


def read_reply(message: Message, longest: int) -> Reply:
    """The reply in a message.

    Args:
        longest: bytes that the body may have.

    Raises:
        WireError: it is not one, too long, or of another version of capfl.
    """
    reply = _read(Reply, message, longest)
    if reply.capfl != HERE:
        raise WireError(f"the site has capfl {reply.capfl}; the server has {HERE}")
    if reply.code and reply.code not in PUBLIC:
        raise WireError(f"a reply of the network cannot be read: there is no error {reply.code!r}")
    return reply


def _read(made: type[Made], message: Message, longest: int | None) -> Made:
    what = f"a {made.__name__.lower()} of the network cannot be read"
    try:
        values: dict[str, Any] = dict(message.content.config_records[RECORD])
        if LONG in message.content:
            array = message.content.array_records[LONG][LONG]
            if array.stype != TYPE:
                raise WireError(f"{what}: its body is an array of another kind")
            values["body"] = array.data
        if longest is not None and len(values["body"]) > longest:
            raise WireError(f"{what}: its body of {len(values['body'])} bytes is longer than any that is expected")
        return made(**values)
    except ValidationError as error:  # which shows the values to whoever sees it
        first = error.errors(include_input=False, include_url=False)[0]
        fields = made.__dataclass_fields__
        name = next((name for name in fields if name in first["loc"]), f"not one of {', '.join(fields)}")
        raise WireError(f"{what}: {name}: {first['msg']}; are both sides of one version of capfl?") from None
    except (KeyError, ValueError, TypeError) as error:
        raise WireError(f"{what}: it is not made of capfl's records ({type(error).__name__})") from error
