"""Messages damaged, spliced and made up: they decode to something that fits, or raise WireError, and nothing else.

The examples are the same in every run; ``benchmarks/fuzz_wire.py`` tries a million.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import CODECS, SMALL, normal, resealed, same
from capfl.errors import WireError
from capfl.types import Adapter, ClientState, Group, Update
from capfl.wire import (
    Records,
    adding,
    advance,
    broadcast,
    compensate,
    decode_broadcast,
    decode_update,
    down_codec,
    encode_broadcast,
    encode_update,
    receive,
    schema_hash,
    up_codec,
)
from capfl.wire.records import vector


@dataclass(frozen=True)
class Described:
    features: torch.Tensor = vector("bf16")


@dataclass(frozen=True)
class Posterior:
    alpha: torch.Tensor = vector("positive")
    alive: torch.Tensor | None = vector("marks", optional=True)


SCHEMA = schema_hash(SMALL, "base")
START = normal(99)
RECORDS = Records(grouping=Described, ranks=Posterior)
SAID = Described(torch.linspace(-2, 2, 9)), Posterior(torch.linspace(0.5, 4, 8))
FOUR = np.array([3.0, 0.0, 1.0, 0.5])  # importance of the ranks: those that are drawn say it
SOME = np.array([True, True, False, True])  # a client without the third: what is drawn says that too
MEMORY = ClientState("site", version=2, known=normal(98))
UP = {name: up_codec(config, 0) for name, config in CODECS.items()}
DOWN = {name: down_codec(config, 0) for name, config in CODECS.items()}


@cache
def updates_of(codec: str) -> list[bytes]:
    ways: list[tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.bool_] | None]]
    ways = [(None, None), (FOUR, None), (FOUR, SOME)]
    bodies = [compensate(normal(0), {}, UP[codec], SMALL, 3, *way)[0] for way in ways]
    said = Update(3, "site", {}, 12, 7, 1.25, *SAID)
    return [encode_update(said, body, UP[codec], SCHEMA) for body in bodies]


@cache
def broadcasts_of(codec: str) -> list[bytes]:
    """One difference, two of them, and the whole adapter."""
    found = []
    for importance in (None, FOUR):
        group = Group(START, START)
        for round in (1, 2, 3):
            target = {name: t + normal(round)[name] for name, t in START.items()}
            group = advance(replace(group, adapter=target), target, round, DOWN[codec], SMALL, importance)
        found += [broadcast(group, 3, "site", version, SMALL, START) for version in (2, 1, 0)]
    said = dict(zip(("grouping", "ranks"), SAID, strict=True))
    return [encode_broadcast(replace(told, **said), DOWN[codec], SCHEMA).blob for told in found]


def read_update(blob: bytes, codec: str) -> None:
    update, parts = decode_update(blob, UP[codec], SCHEMA, SMALL, RECORDS)
    assert fits(update.adapter)
    assert update.n_train > 0
    assert sum(parts.values()) == len(blob)


def read_broadcast(blob: bytes, codec: str) -> None:
    told = decode_broadcast(blob, DOWN[codec], SCHEMA, RECORDS)
    known = receive(told, MEMORY, adding(DOWN[codec], SMALL), SMALL, START).known
    assert fits(known)
    assert list(known) == list(SMALL) or told.state is not None
    assert same(MEMORY.known, normal(98))


def fits(adapter: Adapter) -> bool:
    return all(t.shape == SMALL[n].shape and bool(t.isfinite().all()) for n, t in adapter.items())


def read_or_refused(blob: bytes, codec: str) -> None:
    for reader in (read_update, read_broadcast):
        with suppress(WireError):
            reader(blob, codec)


@st.composite
def forged(draw: st.DrawFn, codec: str) -> bytes:
    """Bytes changed, removed or put in, two messages spliced, or any body under a right header."""
    messages = [*updates_of(codec), *broadcasts_of(codec)]
    blob, way = bytearray(draw(st.sampled_from(messages))), draw(st.sampled_from(["bytes", "values", "splice", "body"]))
    if way == "splice":
        other = draw(st.sampled_from([*messages, *updates_of(draw(st.sampled_from(list(CODECS))))]))
        return resealed(bytes(blob[: draw(st.integers(0, len(blob)))] + other[draw(st.integers(0, len(other))) :]))
    if way == "body":
        return resealed(bytes(blob[:42] + draw(st.binary(max_size=120)) + bytes(4)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0 if way == "bytes" else 42, len(blob)))
        blob[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=6))
    return resealed(bytes(blob)) if draw(st.booleans()) else bytes(blob)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=40, derandomize=True)
@given(data=st.data())
def test_forged_messages(codec, data):
    read_or_refused(data.draw(forged(codec)), codec)


@settings(max_examples=40, derandomize=True)
@given(st.binary(max_size=120), st.booleans())
def test_random_bytes(blob, begins_well):
    for reader in (read_update, read_broadcast):
        with pytest.raises(WireError):
            reader(b"CPFL\x02" + blob if begins_well else blob, "fp32")


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_undamaged_passes(codec):
    for blob in updates_of(codec):
        read_update(blob, codec)
    for blob in broadcasts_of(codec):
        read_broadcast(blob, codec)
