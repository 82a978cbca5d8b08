"""Frozen dataclasses as bytes and back: states on disk. What they are made of follows from their types.

A value is a tensor, a number, text, None, bytes, a tuple, a mapping from text, or a dataclass of these. Tensors and
bytes go into one safetensors file, all else into JSON in its metadata. A tensor that stands in two places is written
once. The file ends in a BLAKE2b digest of all before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from capfl.errors import CheckpointError

T = TypeVar("T")
DIGEST = 16  # bytes


def pack(value: Any) -> bytes:
    """A dataclass as bytes. Raises TypeError: a value of another kind than those above."""
    tensors: list[torch.Tensor] = []
    tree = _taken_apart(value, tensors, {})
    # clones, because safetensors writes no memory twice; one key, because it writes several in random order
    named = {f"{n:06d}": t.contiguous().clone() for n, t in enumerate(tensors)}
    blob = save(named, metadata={"tree": json.dumps(tree, separators=(",", ":"))})
    return blob + hashlib.blake2b(blob, digest_size=DIGEST).digest()


def unpack(kind: type[T], blob: bytes, parts: Mapping[str, type | None] | None = None) -> T:
    """The dataclass that ``pack`` was given.

    Args:
        parts: the classes of fields that are declared as ``object | None``, by name, wherever they are.

    Raises:
        CheckpointError: the bytes are damaged, or are of another class.
    """
    body, digest = blob[:-DIGEST], blob[-DIGEST:]
    if len(blob) <= DIGEST or hashlib.blake2b(body, digest_size=DIGEST).digest() != digest:
        raise CheckpointError("the file is damaged: its digest is not that of its content")
    try:
        tensors = load(body)
        length = int.from_bytes(body[:8], "little")
        tree = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["tree"])
        found: T = _put_together(kind, tree, tensors, parts or {})
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"the file holds no {kind.__name__}: {type(error).__name__}: {error}") from error
    return found


def _taken_apart(value: Any, tensors: list[torch.Tensor], numbers: dict[int, int]) -> Any:
    """The value as JSON, with the numbers of tensors in their place; bytes are tensors, too.

    Args:
        numbers: of the tensors so far, by identity: one that stands in two places is written once.
    """
    if isinstance(value, bytes):
        value = torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.zeros(0, dtype=torch.uint8)
    if isinstance(value, torch.Tensor):
        if id(value) not in numbers:
            numbers[id(value)] = len(tensors)
            tensors.append(value)
        return numbers[id(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple):
        return [_taken_apart(one, tensors, numbers) for one in value]
    if isinstance(value, Mapping):
        return [[key, _taken_apart(one, tensors, numbers)] for key, one in value.items()]
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: _taken_apart(getattr(value, field.name), tensors, numbers) for field in fields}
    raise TypeError(f"cannot write a {type(value).__name__} to a state")


def _put_together(kind: Any, tree: Any, tensors: Mapping[str, torch.Tensor], parts: Mapping[str, type | None]) -> Any:
    kind = _without_none(kind)
    if tree is None:
        return None
    if kind in (torch.Tensor, bytes):
        tensor = tensors[f"{tree:06d}"]
        return tensor.numpy().tobytes() if kind is bytes else tensor
    if kind in (str, int, float):
        if not isinstance(tree, (int, float) if kind is float else kind):
            raise TypeError(f"{tree!r} is no {kind.__name__}")
        return tree
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        return tuple(_put_together(inner[0], one, tensors, parts) for one in tree)
    if origin is not None and issubclass(origin, Mapping):
        return {str(key): _put_together(inner[1], one, tensors, parts) for key, one in tree}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        declared = _fields(kind)
        if set(tree) != set(declared):
            raise TypeError(f"its fields are {', '.join(tree)}, those of {kind.__name__} are {', '.join(declared)}")
        return kind(**{
            name: _put_together(parts.get(name, hint), tree[name], tensors, parts)
            for name, hint in declared.items()
        })  # fmt: skip
    raise TypeError(f"{kind} cannot be read from a state")


@cache
def _fields(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, localns={"torch": torch})  # ``types`` does without
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _without_none(kind: Any) -> Any:
    """X of ``X | None``."""
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    return kind
