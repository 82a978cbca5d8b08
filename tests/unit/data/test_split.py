"""Splits: every item in one part, no part empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.config.schema import PartitionConfig
from capfl.data.split import Split, split
from capfl.errors import DataError


@given(
    st.sets(st.integers(0, 10_000), min_size=3, max_size=60).map(sorted),
    st.sampled_from([(0.0, 0.2), (0.1, 0.2), (0.45, 0.5), (0.01, 0.98), (0.98, 0.01), (0.0, 0.99)]),
    st.integers(0, 100),
)
def test_parts_are_disjoint_complete_and_not_empty(indices, shares, seed):
    config = PartitionConfig(validation=shares[0], test=shares[1])
    made = split(indices, config, seed, "00")
    assert sorted(made.train + made.validation + made.test) == indices
    assert made.train
    assert made.test
    assert bool(made.validation) == (shares[0] > 0)
    assert made == split(indices, config, seed, "00")


def test_shares_seed_and_client():
    config = PartitionConfig(validation=0.1, test=0.2)
    made = split(range(100), config, 0, "00")
    assert (len(made.train), len(made.validation), len(made.test)) == (70, 10, 20)
    assert made != split(range(100), config, 1, "00")
    assert made != split(range(100), config, 0, "01")
    assert split([5, 7, 9], PartitionConfig(validation=0.4, test=0.5), 0, "x") != Split([], [], [])


@pytest.mark.parametrize(("validation", "n"), [(0.1, 2), (0.0, 1)])
def test_too_few_items(validation, n):
    with pytest.raises(DataError, match=f"client 'x' has {n} items, too few for {n + 1} parts"):
        split(range(n), PartitionConfig(validation=validation), 0, "x")
