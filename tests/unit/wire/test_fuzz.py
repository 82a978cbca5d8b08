"""Messages damaged, forged and made up: they decode to something that fits, or raise WireError, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from adapters import CODECS, SMALL, normal, resealed
from capfl.errors import WireError
from capfl.types import Adapter, ClientState, NoteKind, ServerState, Update
from capfl.wire import (
    Codec,
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

SCHEMA = schema_hash(SMALL, "base")
START = normal(99)
KINDS: dict[str, NoteKind] = {"features": "bf16", "alpha": "positive", "beta": "positive"}
NOTES = {"features": torch.linspace(-2, 2, 9), "beta": torch.linspace(0.5, 4, 8)}
FOUR = np.array([3.0, 0.0, 1.0, 0.5])  # importance of the ranks: those that are drawn say it
SOME = np.array([True, True, False, True])  # a client without the third: what is drawn says that too
Importance = npt.NDArray[np.float64] | None
Alive = npt.NDArray[np.bool_] | None
MEMORY = ClientState("site", version=2, known=normal(98))


def an_update(codec: Codec, importance: Importance, alive: Alive = None) -> bytes:
    body, _ = compensate(normal(0), {}, codec, SMALL, 3, importance, alive)
    return encode_update(Update(3, "site", {}, 12, 7, 1.25, NOTES), body, codec, SCHEMA, KINDS)


def some_broadcasts(codec: Codec, importance: Importance) -> list[bytes]:
    """One difference, two of them, and the whole adapter."""
    state = ServerState(0, START, known=START)
    for round in (1, 2, 3):
        target = {name: t + normal(round)[name] for name, t in START.items()}
        state = advance(ServerState(round, target, state.known, state.log), target, codec, SMALL, importance)
    found = [broadcast(state, "site", version, SMALL, START) for version in (2, 1, 0)]
    return [encode_broadcast(replace(told, notes=NOTES), codec, SCHEMA, KINDS).blob for told in found]


UP = {name: up_codec(config, 0) for name, config in CODECS.items()}
DOWN = {name: down_codec(config, 0) for name, config in CODECS.items()}


@cache
def updates_of(codec: str) -> list[bytes]:
    return [an_update(UP[codec], *of) for of in ((None,), (FOUR,), (FOUR, SOME))]


@cache
def broadcasts_of(codec: str) -> list[bytes]:
    return [blob for importance in (None, FOUR) for blob in some_broadcasts(DOWN[codec], importance)]


def fits(adapter: Adapter) -> bool:
    return all(t.shape == SMALL[n].shape and bool(t.isfinite().all()) for n, t in adapter.items())


def read(blob: bytes, codec: str) -> None:
    try:
        update, parts = decode_update(blob, UP[codec], SCHEMA, SMALL, KINDS)
        assert fits(update.adapter)
        assert update.n_train > 0
        assert sum(parts.values()) == len(blob)
    except WireError:
        pass
    try:
        told = decode_broadcast(blob, DOWN[codec], SCHEMA, KINDS)
        after = receive(told, MEMORY, adding(DOWN[codec], SMALL), SMALL, START)
        assert fits(after.known)
        assert list(after.known) == list(SMALL) or told.state is not None
    except WireError:
        pass


@st.composite
def damaged(draw: st.DrawFn, codec: str) -> bytes:
    """A message with some of its bytes changed, removed, or put in, under its old checksum or a new one."""
    blob = bytearray(draw(st.sampled_from([*updates_of(codec), *broadcasts_of(codec)])))
    first = draw(st.sampled_from([0, 42]))  # anywhere, or behind the header
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(first, len(blob)))
        blob[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=6))
    return resealed(bytes(blob)) if draw(st.booleans()) else bytes(blob)


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.data())
def test_damaged_messages(codec, data):
    read(data.draw(damaged(codec)), codec)


@pytest.mark.parametrize("codec", CODECS)
@given(body=st.binary(max_size=120))
def test_any_body_under_a_right_header(codec, body):
    for blob in (updates_of(codec)[0], broadcasts_of(codec)[0]):
        read(resealed(blob[:42] + body + bytes(4)), codec)


@given(st.binary(max_size=120), st.sampled_from(list(CODECS)))
@example(b"CPFL" + bytes(38), "fp32")
@example(b"", "fp32")
def test_random_bytes(blob, codec):
    for decode in (
        lambda: decode_update(blob, UP[codec], SCHEMA, SMALL, KINDS),
        lambda: decode_broadcast(blob, DOWN[codec], SCHEMA, KINDS),
    ):
        with pytest.raises(WireError):
            decode()


@given(st.sampled_from(list(CODECS)), st.data())
def test_two_messages_spliced(codec, data):
    messages = [*(blob for name in CODECS for blob in updates_of(name)), *broadcasts_of(codec)]
    first, second = data.draw(st.sampled_from(messages)), data.draw(st.sampled_from(messages))
    cut = data.draw(st.integers(0, len(first)))
    read(resealed(first[:cut] + second[data.draw(st.integers(0, len(second))) :] + bytes(4)), codec)


def test_what_is_undamaged_passes():
    for name in CODECS:
        for blob in updates_of(name):
            assert fits(decode_update(blob, UP[name], SCHEMA, SMALL, KINDS)[0].adapter)
        for blob in broadcasts_of(name):
            told = decode_broadcast(blob, DOWN[name], SCHEMA, KINDS)
            assert list(receive(told, MEMORY, adding(DOWN[name], SMALL), SMALL, START).known) == list(SMALL)
        assert torch.equal(MEMORY.known["q.A"], normal(98)["q.A"])
