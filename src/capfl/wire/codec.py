"""Codecs: the tensors of a message as bytes, decoded against a template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from capfl.errors import ConfigError, WireError
from capfl.types import Adapter


@dataclass(frozen=True)
class Codec:
    """``decode(encode(a), template)`` is a, up to the codec's own rounding. ``tag`` marks it on the wire."""

    name: str
    tag: int
    encode: Callable[[Adapter, Adapter], bytes]
    decode: Callable[[memoryview, Adapter], Adapter]


def _presence(adapter: Adapter, template: Adapter) -> bytes:
    """One bit for each name of the template: is it in the message?"""
    return np.packbits([name in adapter for name in template]).tobytes()


def _dense(name: str, tag: int, dtype: torch.dtype) -> Codec:
    """Every value of every tensor, in the template's order, in one dtype."""
    width = dtype.itemsize

    def encode(adapter: Adapter, template: Adapter) -> bytes:
        if unknown := sorted(adapter.keys() - template.keys()):
            raise WireError(f"{unknown[0]!r} is not in the adapter that both sides agreed on")
        parts = [_presence(adapter, template)]
        for key, like in template.items():
            if key in adapter:
                t = adapter[key]
                if t.shape != like.shape:
                    raise WireError(f"{key!r} has shape {tuple(t.shape)}, expected {tuple(like.shape)}")
                parts.append(t.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().tobytes())
        return b"".join(parts)

    def decode(body: memoryview, template: Adapter) -> Adapter:
        n_mask = (len(template) + 7) // 8
        if len(body) < n_mask:
            raise WireError(f"body of {len(body)} bytes is too short for the list of {len(template)} tensors")
        bits = np.unpackbits(np.frombuffer(body[:n_mask], np.uint8))
        if bits[len(template) :].any():
            raise WireError("the list of tensors names more than the adapter has")
        present = [key for key, bit in zip(template, bits, strict=False) if bit]
        expected = n_mask + width * sum(template[key].numel() for key in present)
        if len(body) != expected:
            raise WireError(f"body has {len(body)} bytes, {len(present)} tensors need {expected}")
        adapter: Adapter = {}
        at = n_mask
        for key in present:
            like = template[key]
            raw = bytearray(body[at : at + width * like.numel()])
            value: Tensor = torch.frombuffer(raw, dtype=dtype).to(torch.float32).reshape(like.shape)
            if not torch.isfinite(value).all():
                raise WireError(f"{key!r} has values that are not finite")
            adapter[key] = value
            at += len(raw)
        return adapter

    return Codec(name, tag, encode, decode)


CODECS = {
    "fp32": _dense("fp32", 1, torch.float32),
    "bf16": _dense("bf16", 2, torch.bfloat16),
}


def codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ConfigError: there is none; the message lists the choices.
    """
    if name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}; choose from {', '.join(CODECS)}")
    return CODECS[name]
