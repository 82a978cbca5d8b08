"""States as bytes: what is packed comes back, equal values are equal bytes, and any damage is noticed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.errors import CheckpointError
from capfl.packing import pack, unpack
from capfl.types import ClientState


@dataclass(frozen=True)
class Inner:
    name: str
    numbers: tuple[int, ...] = ()
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    round: int
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    log: tuple[bytes, ...] = ()
    inner: Mapping[str, Inner] = field(default_factory=dict)
    one: Inner | None = None
    part: object | None = None


@dataclass(frozen=True)
class Longer(Inner):
    further: int = 0


def tensors() -> st.SearchStrategy[torch.Tensor]:
    shapes = st.lists(st.integers(0, 3), max_size=3)
    kinds = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
    return st.builds(lambda shape, kind, seed: _drawn(shape, kind, seed), shapes, kinds, st.integers(0, 99))


def _drawn(shape: list[int], kind: torch.dtype, seed: int) -> torch.Tensor:
    return (9 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(kind)


inners = st.builds(
    Inner, st.text(max_size=5), st.lists(st.integers(), max_size=3).map(tuple), st.floats(allow_nan=False)
)
outers = st.builds(
    Outer,
    st.integers(0, 2**70),
    st.dictionaries(st.text(max_size=4), tensors(), max_size=3),
    st.lists(st.binary(max_size=9), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=4), inners, max_size=3),
    st.none() | inners,
    st.none() | inners,
)
PARTS = {"part": Inner}
FULL = Outer(
    7, {"b": torch.tensor([1.5, -0.0]), "a": torch.zeros(0, 2)}, (b"", b"x\x00"), {"i": Inner("ü", (1, 2), 1e-17)}
)


@given(outers)
def test_what_is_packed_comes_back(value: Outer) -> None:
    back = unpack(Outer, pack(value), PARTS)
    for own in ("round", "log", "inner", "one", "part"):
        assert getattr(back, own) == getattr(value, own)
    assert list(back.tensors) == list(value.tensors)  # in their order
    for name, t in value.tensors.items():
        found = back.tensors[name]
        assert (found.dtype, found.shape) == (t.dtype, t.shape)
        assert torch.equal(found.view(torch.uint8) if t.dim() else found, t.view(torch.uint8) if t.dim() else t)
    assert pack(back) == pack(value)


def test_every_flipped_byte_and_every_missing_end_is_noticed() -> None:
    blob = pack(FULL)
    for at in range(len(blob)):
        with pytest.raises(CheckpointError, match="damaged"):
            unpack(Outer, blob[:at])
        with pytest.raises(CheckpointError, match="damaged"):
            unpack(Outer, blob[:at] + bytes([blob[at] ^ 0x10]) + blob[at + 1 :])
    with pytest.raises(CheckpointError, match="damaged"):
        unpack(Outer, blob + b"\x00")


def test_another_class_and_other_fields_are_refused() -> None:
    with pytest.raises(CheckpointError, match="holds no ClientState: TypeError: its fields are round, tensors, log"):
        unpack(ClientState, pack(FULL))
    with pytest.raises(CheckpointError, match="its fields are name, numbers, share, further, those of Inner are"):
        unpack(Inner, pack(Longer("a")))
    with pytest.raises(CheckpointError, match="holds no Longer"):
        unpack(Longer, pack(Inner("a")))
    with pytest.raises(CheckpointError, match="'seven' is no int"):
        unpack(Outer, pack(Outer("seven")))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="holds no Outer"):  # a part whose class is not given
        unpack(Outer, pack(Outer(1, part=Inner("a"))))
    with pytest.raises(CheckpointError, match="holds no Outer"):  # a part of a method that has none
        unpack(Outer, pack(Outer(1, part=Inner("a"))), {"part": None})


def test_what_cannot_be_written_is_an_error_of_the_program() -> None:
    for value in ({1, 2}, object(), [1]):
        with pytest.raises(TypeError, match=f"cannot write a {type(value).__name__} to a state"):
            pack(Outer(1, part=value))


def test_a_tensor_in_two_places_is_written_once() -> None:
    """And is one again; one that is only equal is written by itself."""
    t = torch.randn(500)
    once, twice = pack(Outer(1, {"a": t, "b": t})), pack(Outer(1, {"a": t, "b": t.clone()}))
    assert len(twice) - len(once) >= 2000
    back = unpack(Outer, once)
    assert back.tensors["a"] is back.tensors["b"]
    assert pack(back) == once
    rows = torch.arange(6.0).reshape(2, 3)
    apart = unpack(Outer, pack(Outer(1, {"whole": rows, "view": rows.T, "row": rows[1]})))
    assert torch.equal(apart.tensors["view"], rows.T)
    assert torch.equal(apart.tensors["row"], rows[1])
