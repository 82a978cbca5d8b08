"""Random streams: one for each purpose, the same on every machine, and nobody else's numbers touched."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.rng import derive, stream, torch_stream

keys = st.lists(st.one_of(st.integers(0, 9), st.sampled_from(["", "a", "b", "1", "a\x1fb"])), max_size=3)


def test_pinned_values() -> None:
    """Other values are other runs: whoever changes these breaks every published seed. Nor do they vary by process."""
    assert derive(0, "batches", "bank", 3) == 4500900374659323294
    assert stream(0, "batches", "bank", 3).integers(0, 1000, 4).tolist() == [65, 901, 613, 849]


@given(keys, keys, st.integers(0, 2**63))
def test_every_argument_counts(one: list[int | str], other: list[int | str], seed: int) -> None:
    assert (derive(0, "p", *one) == derive(0, "p", *other)) == (one == other)
    assert derive(seed, "p", *one) != derive(seed, "q", *one)
    assert derive(seed, "p", *one) != derive(seed + 1, "p", *one)
    assert 0 <= derive(seed, "p", *one) < 2**64


def test_streams_are_not_correlated() -> None:
    draws = np.stack([stream(0, "p", k).standard_normal(4000) for k in range(6)])
    off = np.corrcoef(draws) - np.eye(6)
    assert np.abs(off).max() < 0.08  # five standard deviations of 1 / sqrt(4000)


def test_a_torch_stream_is_a_function_of_its_keys() -> None:
    def draw(*names: int | str) -> float:
        with torch_stream(0, "dropout", *names):
            return float(torch.rand(()))

    assert draw("a", 1) == draw("a", 1)
    assert len({draw("a", 1), draw("a", 2), draw("b", 1)}) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_no_stream_touches_the_global_generators(fails: bool) -> None:
    random.seed(1)
    np.random.seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    stream(0, "p").random(10)
    try:
        with torch_stream(0, "p"):
            torch.rand(10)
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
