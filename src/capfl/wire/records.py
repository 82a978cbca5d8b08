"""Records: frozen dataclasses of short vectors that travel beside an adapter, such as the parameters of a prior.

    @dataclass(frozen=True)
    class Said:
        alpha: torch.Tensor = vector("positive")
        features: torch.Tensor | None = vector("bf16", optional=True)

On the wire the fields stand in the order of the class, and both sides know the code of each from it: ``bf16`` for
finite numbers, ``float64`` for such as must arrive exactly, ``positive`` for finite positive numbers of three bits of
mantissa, ``marks`` for 0 and 1. docs/wire.md has the bytes.
"""

from __future__ import annotations

from dataclasses import field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch

from capfl.errors import WireError
from capfl.wire import rice
from capfl.wire.scales import Scales

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")
Code = Literal["bf16", "float64", "positive", "marks"]

LONGEST = 2**16 - 1  # elements of a vector, and bytes of its data
_POSITIVE = Scales(mantissa=3)
_PLAIN = {"bf16": torch.bfloat16, "float64": torch.float64}
_HEAD = 5  # bytes before the data of each vector
_KEY = "capfl.vector"


def vector(code: Code, optional: bool = False) -> Any:
    """A dataclass field that holds a vector (n,) with 1 to 65,535 elements.

    Args:
        code: how the elements are written; see the top of this module.
        optional: the field may be None, which is its default and takes no bytes. It is given by keyword.
    """
    metadata = {_KEY: (code, optional)}
    return field(default=None, kw_only=True, metadata=metadata) if optional else field(metadata=metadata)


def write(record: DataclassInstance) -> bytes:
    """A record as bytes.

    Raises:
        WireError: a required field is None, or a field is not a vector of numbers that its code can write.
        TypeError: a field of the class is not a ``vector``.
    """
    body = b""
    for place, (name, code, optional) in enumerate(_vectors(type(record))):
        values, label = getattr(record, name), f"{type(record).__name__}.{name}"
        if values is not None:
            data = _encode(label, values, code)
            body += bytes([place]) + len(values).to_bytes(2, "little") + len(data).to_bytes(2, "little") + data
        elif not optional:
            raise WireError(f"{label} is missing")
    return body


def read(data: memoryview, kind: type[R]) -> R:
    """The record that ``write`` wrote, its vectors on the CPU: float64 where that is the code, float32 elsewhere.

    Raises:
        WireError: the bytes are not a record of this kind; the text names the field.
        TypeError: a field of the class is not a ``vector``.
    """
    vectors, found, last = _vectors(kind), dict[str, torch.Tensor](), -1
    while len(data):
        place = data[0]
        if place >= len(vectors):
            raise WireError(f"{kind.__name__} has {len(vectors)} fields, the message has one with number {place}")
        name, code, _ = vectors[place]
        label = f"{kind.__name__}.{name}"
        if place <= last:
            raise WireError(f"{label} comes twice or in the wrong place")
        n, length = (int.from_bytes(data[i : i + 2], "little") for i in (1, 3))
        if len(data) < _HEAD + length:
            raise WireError(f"{label} is cut off")
        try:
            found[name] = _decode(data[_HEAD : _HEAD + length], n, code)
        except WireError as error:
            raise WireError(f"{label} cannot be read: {error}") from error
        data, last = data[_HEAD + length :], place
    for name, _, optional in vectors:
        if name not in found and not optional:
            raise WireError(f"{kind.__name__}.{name} is missing")
    return kind(**found)


def rounded(record: R) -> R:
    """The record as it will arrive, for a sender that must compute with the same numbers. Raises as ``write``."""
    return read(memoryview(write(record)), type(record))


@cache
def _vectors(kind: type[DataclassInstance]) -> tuple[tuple[str, Code, bool], ...]:
    """Name, code and "is it optional" of each field, in the order of the wire."""
    found = []
    for declared in fields(kind):
        if _KEY not in declared.metadata:
            raise TypeError(f"{kind.__name__}.{declared.name} cannot be sent: declare it with vector(...)")
        found.append((declared.name, *declared.metadata[_KEY]))
    return tuple(found)


def _encode(label: str, values: torch.Tensor, code: Code) -> bytes:
    if values.ndim != 1 or not 1 <= len(values) <= LONGEST or not bool(values.isfinite().all()):
        raise WireError(f"{label} is not a vector of 1 to {LONGEST} finite numbers")
    values = values.detach().cpu()
    if code in _PLAIN:
        coded = values.to(_PLAIN[code])
        if not bool(coded.isfinite().all()):
            raise WireError(f"{label} has numbers too large for {code}")
        data = coded.view(torch.uint8).numpy().tobytes()
    elif code == "marks":
        if not bool(((values == 0) | (values == 1)).all()):
            raise WireError(f"{label} has marks other than 0 and 1")
        data = np.packbits(values.numpy().astype(np.bool_)).tobytes()
    else:
        codes = _POSITIVE.code(values.numpy())
        if not bool((values > 0).all()) or not codes.all():
            raise WireError(f"{label} has numbers that are not positive, or too small to write")
        data = _POSITIVE.write(codes)
    if len(data) > LONGEST:
        raise WireError(f"{label} takes {len(data)} bytes, {LONGEST} at most")
    return data


def _decode(data: memoryview, n: int, code: Code) -> torch.Tensor:
    if not n:
        raise WireError("there are no elements")
    if code in _PLAIN:
        if len(data) != _PLAIN[code].itemsize * n:
            raise WireError(f"{len(data)} bytes for {n} numbers")
        values = torch.frombuffer(bytearray(data), dtype=_PLAIN[code])
        values = values if code == "float64" else values.float()
        if not bool(values.isfinite().all()):
            raise WireError("there are numbers that are not finite")
    elif code == "marks":
        values = torch.from_numpy(rice.unpack(data, n, 1)).float()
    else:
        values = torch.from_numpy(_POSITIVE.read(data, n)).float()
        if not bool((values > 0).all()):
            raise WireError("there are numbers that are not positive")
    return values
