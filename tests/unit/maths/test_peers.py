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


def test_agreement_of_two_clients_by_hand():
    means = np.array([[2.0, 0.0], [2.0, 2.0]])
    found = agreement(means, np.array([2.0, 1.0]), np.array([5.0, 9.0]), np.array([2.0, 4.0]))
    # scaled by 1 / 2 and 1, squares are means: own 1/2 and 5/2, less (1 - 1/2) / 4 and (1 - 1/4) / 8
    own = [1 / 2 - 1 / 8, 5 / 2 - 3 / 32]
    signal = (5 * own[0] + 9 * own[1]) / 14
    assert signal > 1.5 * np.std(own, ddof=1) / np.sqrt(2) - 1  # else nothing could be told
    np.testing.assert_allclose(found, [[1, 0.5 / signal], [0.5 / signal, 1]])


def bound_means(books, n, seed, weight, d=300):
    """Of clients with n items, each of one of 4 kinds that has a place of its own: means bound by each client's book.

    Also the standard deviation of an item's state, and the effective numbers of answers.
    """
    generator = np.random.default_rng(seed)
    places = weight * generator.normal(size=(4, d))
    signs = generator.integers(0, 2, (4, d)) * 2 - 1
    means, deviations, effective = [], [], []
    for book in books:
        kinds = generator.integers(0, 4, n)
        states = places[kinds] + generator.normal(size=(n, d))
        answers = np.array(book)[kinds]
        means.append(((states - states.mean(0)) * signs[answers]).mean(0))
        deviations.append(states.std(0))
        effective.append(1 / np.sum((np.bincount(answers) / n) ** 2))
    return np.array(means), np.mean(np.square(deviations), 0) ** 0.5, np.full(len(books), float(n)), np.array(effective)


SAME, SHIFTED = [0, 1, 2, 3], [1, 2, 3, 0]


def test_agreement_is_one_alike_and_not_positive_apart():
    found = np.mean([agreement(*bound_means([SAME, SAME, SHIFTED, SHIFTED], 30, s, 0.7)) for s in range(40)], 0)
    np.testing.assert_array_equal(np.diag(found), 1)
    assert found[0, 1] == pytest.approx(1, abs=0.1)
    assert found[2, 3] == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(found[:2, 2:], -1 / 3, atol=0.1)  # four kinds that are centred have -1/3 in common


def test_where_answers_do_not_follow_prompts_nothing_is_told():
    told = [not (agreement(*bound_means([SAME] * 8, 20, s, 0.0)) == 1).all() for s in range(100)]
    assert 0 < np.mean(told) < 0.2  # one in fifteen, were the errors normal
    one = np.ones(1)
    np.testing.assert_array_equal(agreement(np.ones((1, 3)), np.ones(3), one, one), 1)


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
