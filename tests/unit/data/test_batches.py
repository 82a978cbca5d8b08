"""Batches: every index once, little padding, another order each epoch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from capfl.data.batches import batches, by_chance


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 20), st.integers(0, 5))
def test_every_index_once(lengths, size, epoch):
    made = batches(lengths, size, 0, "00", epoch)
    assert sorted(k for batch in made for k in batch.tolist()) == list(range(len(lengths)))
    assert [len(batch) == size for batch in made].count(False) <= 1


def test_lengths_are_bucketed_and_the_order_depends_on_seed_client_and_epoch():
    lengths = np.random.default_rng(0).integers(5, 200, 1024)
    made = batches(lengths.tolist(), 8, 0, "00", 0)
    assert sum(lengths[batch].max() * len(batch) for batch in made) / lengths.sum() < 1.15  # at random about 1.75
    keys = [(0, "00", 0), (1, "00", 0), (0, "01", 0), (0, "00", 1), (0, "00", 0)]
    orders = [tuple(np.concatenate(batches([3, 1, 2] * 20, 4, *key))) for key in keys]
    assert len(set(orders)) == 4
    assert orders[0] == orders[-1]


def test_batches_by_chance_have_each_item_with_the_same_probability_whoever_else_is_in_them():
    draw, share, times = np.random.default_rng(0).bytes, 0.3, 4000
    drawn = np.zeros((times, 6))
    for row in drawn:
        row[by_chance(6, share, draw)] = 1
    error = np.sqrt(share * (1 - share) / times)
    assert np.abs(drawn.mean(0) - share).max() < 4 * error
    assert abs((drawn[:, 0] * drawn[:, 1]).mean() - share**2) < 4 * error
    assert drawn.sum(1).min() == 0  # empty ones, too
    assert by_chance(3, 1.0, draw).tolist() == [0, 1, 2]
    words = np.array([0, 2**62 - 1, 2**62, 2**64 - 1], "<u8").tobytes()
    assert by_chance(4, 0.25, lambda n: words).tolist() == [0, 1]
