"""Random streams: one for each purpose, the same on every machine, and nobody else's numbers touched."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.rng import derive, stream, torch_stream

keys = st.lists(st.one_of(st.integers(0, 9), st.sampled_from(["", "a", "b", "1", "a\x1fb"])), max_size=3)


def test_pinned_values():
    """Other values are other runs: whoever changes these breaks every published seed."""
    assert derive(0, "batches", "bank", 3) == 4500900374659323294
    assert stream(0, "batches", "bank", 3).integers(0, 1000, 4).tolist() == [65, 901, 613, 849]


def test_another_process_derives_the_same():
    """Hashes of strings differ between processes; this one must not."""
    code = "from capfl.rng import derive, stream; print(derive(7, 'x', 'client', 2), stream(7, 'x').random())"
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
             for _ in range(2)}  # fmt: skip
    assert found == {f"{derive(7, 'x', 'client', 2)} {stream(7, 'x').random()}\n"}


def test_every_argument_counts():
    seeds = [
        derive(0, "a"), derive(1, "a"), derive(0, "b"), derive(0, "a", 0), derive(0, "a", 1), derive(0, "a", "1"),
        derive(0, "a", 0, 1), derive(0, "a", 1, 0), derive(0, "a", "x"), derive(0, "a", "x", 0), derive(0, "a", 0, "x"),
        derive(10, "a"), derive(1, "0a"),
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)


@given(keys, keys)
def test_different_keys_are_different_streams(one, other):
    assert (derive(0, "p", *one) == derive(0, "p", *other)) == (one == other)


@given(st.integers(0, 2**63), st.text(max_size=5))
def test_seeds_have_64_bits(seed, purpose):
    assert 0 <= derive(seed, purpose) < 2**64


def test_streams_are_not_correlated():
    draws = np.stack([stream(0, "p", k).standard_normal(4000) for k in range(6)])
    off = np.corrcoef(draws) - np.eye(6)
    assert np.abs(off).max() < 0.08  # five standard deviations of 1 / sqrt(4000)


def test_streams_start_anew_each_time():
    assert stream(3, "p").random() == stream(3, "p").random()
    generator = stream(3, "p")
    assert generator.random() != generator.random()


# -- torch's global generator -------------------------------------------------------------------------------


def test_a_torch_stream_is_a_function_of_its_keys():
    def draw(*names: int | str) -> float:
        with torch_stream(0, "dropout", *names):
            return float(torch.rand(()))

    assert draw("a", 1) == draw("a", 1)
    assert len({draw("a", 1), draw("a", 2), draw("b", 1)}) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_the_generator_goes_on_after_the_block_as_if_nothing_had_been(fails):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    try:
        with torch_stream(0, "dropout"):
            torch.rand(10)
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert torch.equal(torch.rand(3), expected)


def test_no_stream_touches_the_global_generators():
    random.seed(1)
    np.random.seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    stream(0, "p").random(10)
    derive(0, "p")
    with torch_stream(0, "p"):
        torch.rand(10)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
