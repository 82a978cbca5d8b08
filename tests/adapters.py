"""Small adapters, for any test of the wire."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st

from capfl.config.schema import CodecConfig
from capfl.types import Adapter

SMALL = {"q.A": torch.zeros(2, 3), "q.B": torch.zeros(4, 2), "v.A": torch.zeros(2, 3), "v.B": torch.zeros(2, 2)}
"""24 elements: 6 + 8 + 6 + 4."""

KINDS = ("fp32", "bf16", "ternary", "8bit", "4bit", "3bit", "2bit")

CODECS = {
    "default": CodecConfig(),
    "fp32": CodecConfig(values="fp32"),
    "bf16": CodecConfig(values="bf16", mask="top"),
    "8bit": CodecConfig(values="8bit", mask="top"),
    "4bit": CodecConfig(values="4bit", mask="top"),
    "fp32-sparse": CodecConfig(values="fp32", mask="top", density=0.2),
    "ternary": CodecConfig(values="ternary", mask="top", density=0.15),
    "ternary-dense": CodecConfig(values="ternary", mask="top", density=1),
    "2bit": CodecConfig(values="2bit", mask="top", density=0.3),
    "3bit": CodecConfig(values="3bit", mask="top", density=0.3),
    "random": CodecConfig(values="4bit", density=0.25, mask="random", compensation="feedback"),
    "down": CodecConfig(values="bf16", mask="top", down_values="ternary", down_density=0.3),
    "no-feedback": CodecConfig(values="ternary", mask="top", density=0.2, compensation="off"),
    "unbiased-bf16": CodecConfig(values="bf16", density=0.5),
    "unbiased-dense": CodecConfig(values="ternary", density=1),
}
"""Every value kind, dense and sparse, and every option of a codec at least once."""


def same(a: Adapter, b: Adapter) -> bool:
    """Equal names in equal order, and equal values."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def normal(seed: int, template: Adapter = SMALL, scale: float = 1.0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(t.shape, generator=generator) for name, t in template.items()}


def total(parts: list[Adapter], template: Adapter = SMALL) -> Adapter:
    """The sum of adapters in float64; a name that a part lacks counts as zero."""
    zero = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in template.items()}
    return {name: sum((p[name].double() for p in parts if name in p), start=t) for name, t in zero.items()}


def resealed(blob: bytes, at: int = 0, new: bytes = b"") -> bytes:
    """The message with some bytes replaced and a checksum that fits."""
    body = blob[:at] + new + blob[at + len(new) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


@st.composite
def templates(draw: st.DrawFn, most: int = 5) -> Adapter:
    """Up to ``most`` tensors of up to 6 x 6 elements, A and B in any order."""
    shapes = draw(st.lists(st.tuples(st.sampled_from("AB"), st.integers(1, 6), st.integers(1, 6)), max_size=most))
    return {f"m{i}.{factor}": torch.zeros(a, b) for i, (factor, a, b) in enumerate(shapes)}


@st.composite
def paired(draw: st.DrawFn, most: int = 3) -> Adapter:
    """Up to ``most`` modules, one at least, of both factors, of rank 1 to 4."""
    number = st.integers(1, 5)
    shapes = draw(st.lists(st.tuples(st.integers(1, 4), number, number), min_size=1, max_size=most))
    found: Adapter = {}
    for i, (r, d_in, d_out) in enumerate(shapes):
        found |= {f"m{i}.A": torch.zeros(r, d_in), f"m{i}.B": torch.zeros(d_out, r)}
    return found


@st.composite
def important(draw: st.DrawFn, template: Adapter) -> npt.NDArray[np.float64]:
    """Importance of the template's ranks: zeros, equals, and numbers of any size."""
    n = sum(t.shape[0] for name, t in template.items() if name.endswith(".A"))
    any_size = st.floats(0, allow_infinity=False, allow_nan=False)
    numbers = st.sampled_from([0.0, 1.0, 3.0]) | st.floats(1e-3, 1e3) | any_size
    return np.array(draw(st.lists(numbers, min_size=n, max_size=n).filter(any)))


@st.composite
def filled(draw: st.DrawFn, values: st.SearchStrategy[float], most: int = 5) -> Adapter:
    """An adapter of any shape with values from a strategy."""
    template = draw(templates(most))
    return {
        name: torch.tensor(draw(st.lists(values, min_size=t.numel(), max_size=t.numel()))).reshape(t.shape)
        for name, t in template.items()
    }
