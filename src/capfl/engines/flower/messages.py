"""Requests of the server and replies of the nodes, as records of Flower.

A message is a record of settings: typed values, of which nothing is parsed. The bytes of ``capfl.wire`` are one of
them while they are short; long ones are an array, which Flower moves in pieces. Whoever reads a message trusts nothing
in it: types, lengths and characters are checked here and nowhere else.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from capfl.errors import PUBLIC, WireError
from capfl.types import ClientId, Kind

NAME, LONG, TYPE = "capfl", "capfl.body", "capfl.message"
SHORT = 2**20  # bytes; Flower holds a setting in memory several times over
OTHER_TYPES = {"round": int, "used": int, "body": bytes}  # all other fields are strings
LONGEST_INT = 2**31
TEXT = re.compile(r"(\w[\w.+-]{0,99})?", re.ASCII)  # client ids, runs, methods, codes and versions

HERE = importlib.metadata.version("capfl")


@dataclass(frozen=True)
class Request:
    """Server to node."""

    run: str  # stays the same when the run is resumed
    kind: Kind
    method: str
    round: int
    client: ClientId
    used: int  # round of the client's last update that the server used: later ones were lost
    body: bytes
    capfl: str = HERE


@dataclass(frozen=True)
class Reply:
    """Node to server: the body, or the code of the error in its place."""

    client: ClientId
    code: str = ""
    body: bytes = b""
    capfl: str = HERE


Made = TypeVar("Made", Request, Reply)


def pack(message: Request | Reply) -> RecordDict:
    values = dict(vars(message))
    if len(message.body) <= SHORT:
        return RecordDict({NAME: ConfigRecord(values)})
    body = Array(dtype="bytes", shape=(len(message.body),), stype=TYPE, data=values.pop("body"))
    return RecordDict({NAME: ConfigRecord(values), LONG: ArrayRecord({LONG: body})})


def read_request(message: Message) -> Request:
    """The request in a message. Raises WireError: it is not one, or of another version of capfl."""
    request = _read(Request, message, None)
    if request.capfl != HERE:
        raise WireError(f"the server has capfl {request.capfl}; this site has {HERE}")
    if request.kind not in get_args(Kind) or not request.run:
        raise WireError("a request of the network cannot be read: its kind is unknown, or it has no run")
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
        values: dict[str, Any] = dict(message.content.config_records[NAME])
        if LONG in message.content:
            array = message.content.array_records[LONG][LONG]
            if array.stype != TYPE:
                raise WireError(f"{what}: its body is an array of another kind")
            values["body"] = array.data
    except (KeyError, ValueError, TypeError) as error:
        raise WireError(f"{what}: it is not made of capfl's records ({type(error).__name__})") from error
    if values.keys() != made.__dataclass_fields__.keys():
        raise WireError(f"{what}: it has other fields; are both sides of one version of capfl?")
    for name, value in values.items():
        expected = OTHER_TYPES.get(name, str)
        if type(value) is not expected:
            raise WireError(f"{what}: {name} is of type {type(value).__name__}, not {expected.__name__}")
        if isinstance(value, str) and not TEXT.fullmatch(value):
            raise WireError(f"{what}: {name} is too long or has characters that names do not have")
        if isinstance(value, int) and not 0 <= value < LONGEST_INT:
            raise WireError(f"{what}: {name} is out of range")
    if longest is not None and len(values["body"]) > longest:
        raise WireError(f"{what}: its body of {len(values['body'])} bytes is longer than any that is expected")
    return made(**values)
