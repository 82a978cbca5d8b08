"""Effect sizes, agreement and clusters: exact on tiny vectors, right on average on samples."""

from __future__ import annotations

import numpy as np
import pytest

from capfl.maths.peers import agreement, clusters, effect_sizes


def test_effect_sizes_of_three_clients():
    means = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 6.0]])
    found = effect_sizes(means, np.array([2.0, 3.0]), np.array([10.0, 20.0, 5.0]))
    # ((2 / 2)^2 + 0) / 2 - 1/10 - 1/20 and so on
    np.testing.assert_allclose(found[0, 1], 0.5 - 0.15)
    np.testing.assert_allclose(found[1, 2], 2.0 - 0.25)
    np.testing.assert_allclose(found[0, 2], 2.5 - 0.3)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 0)


def sampled(centres, n, seed, d=200):
    """Means of n items around each centre (1,) or (d,), with a standard deviation of 1."""
    generator = np.random.default_rng(seed)
    return np.array([generator.normal(c, 1, (n, d)).mean(0) for c in centres])


def test_effect_sizes_are_zero_on_average_for_clients_of_one_distribution():
    found = np.mean([effect_sizes(sampled([3, 3], 9, s), np.ones(200), np.full(2, 9.0))[0, 1] for s in range(200)])
    assert abs(found) < 3 * np.sqrt(2 / 200) * (2 / 9) / np.sqrt(200)
    apart = np.mean([effect_sizes(sampled([3, 3.5], 9, s), np.ones(200), np.full(2, 9.0))[0, 1] for s in range(200)])
    assert apart == pytest.approx(0.25, abs=0.01)


def test_agreement_is_one_alike_and_zero_apart():
    generator = np.random.default_rng(0)
    rules = generator.normal(0, 0.4, (2, 500))
    means = sampled([rules[0], rules[0], rules[1], rules[1]], 20, 1, 500)
    found = agreement(means, np.ones(500), np.full(4, 20.0))
    np.testing.assert_array_equal(np.diag(found), 1)
    assert found[0, 1] == pytest.approx(1, abs=0.15)
    assert found[2, 3] == pytest.approx(1, abs=0.15)
    assert np.abs(found[:2, 2:]).max() < 0.15


def test_where_answers_do_not_follow_prompts_nothing_is_told():
    for seed in range(20):
        found = agreement(sampled([0.0] * 6, 20, seed), np.ones(200), np.full(6, 20.0))
        if np.array_equal(found, np.ones((6, 6))):
            break
    else:
        pytest.fail("noise was always taken for a signal")
    np.testing.assert_array_equal(agreement(np.ones((1, 3)), np.ones(3), np.ones(1)), 1)


def test_noise_is_seldom_taken_for_a_signal():
    told = [
        not np.array_equal(agreement(sampled([0.0] * 8, 20, s), np.ones(200), np.full(8, 20.0)), np.ones((8, 8)))
        for s in range(100)
    ]
    assert np.mean(told) < 0.2


def test_clusters_are_numbered_as_they_appear():
    apart = np.array([[0, 9, 1, 9], [9, 0, 9, 2], [1, 9, 0, 9], [9, 2, 9, 0]], float)
    assert clusters(apart, 0.5).tolist() == [0, 1, 2, 3]
    assert clusters(apart, 1.5).tolist() == [0, 1, 0, 2]
    assert clusters(apart, 2.5).tolist() == [0, 1, 0, 1]
    assert clusters(apart, 9.0).tolist() == [0, 0, 0, 0]


def test_negative_distances_count_in_the_mean():
    # 0-1 join at -1; their mean distance to 2 is (-0.6 + 1.4) / 2 = 0.4, which clipping at zero would make 0.7
    apart = np.array([[0, -1, -0.6], [-1, 0, 1.4], [-0.6, 1.4, 0]])
    assert clusters(apart, 0.5).tolist() == [0, 0, 0]
    assert clusters(apart, 0.3).tolist() == [0, 0, 1]


@pytest.mark.parametrize("n", [0, 1])
def test_few_clients(n):
    assert clusters(np.zeros((n, n)), 0.5).tolist() == [0] * n


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="differ"):
        effect_sizes(np.zeros((2, 3)), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="differ"):
        agreement(np.zeros((2, 3)), np.ones(3), np.ones(3))
