"""Effect sizes, agreement and clusters: exact on tiny vectors, right on average on samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from capfl.maths.peers import Clients, clusters, effect_sizes, from_group, merged, scaled, signal


def test_effect_sizes_of_three_clients():
    means = scaled(np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 6.0]]), np.array([2.0, 3.0]))
    items = np.array([10.0, 20.0, 5.0])
    found = effect_sizes(means[:2], items[:2], means, items)
    # ((2 / 2)^2 + 0) / 2 - 1/10 - 1/20 and so on
    np.testing.assert_allclose(found, [[-0.2, 0.5 - 0.15, 2.5 - 0.3], [0.5 - 0.15, -0.1, 2.0 - 0.25]])


def test_the_signal_of_two_clients_by_hand():
    means = scaled(np.array([[2.0, 0.0], [2.0, 2.0]]), np.array([2.0, 1.0]))
    # scaled by 1 / 2 and 1, squares are means: own 1/2 and 5/2, less (1 - 1/2) / 4 and (1 - 1/4) / 8
    own = [1 / 2 - 1 / 8, 5 / 2 - 3 / 32]
    # 5 and 7 items: 9 count as the median of both
    expected = (5 * own[0] + 7 * own[1]) / 12
    assert expected > 1.5 * np.std(own, ddof=1) / np.sqrt(2)
    assert signal(means, np.array([5.0, 9.0]), np.array([2.0, 4.0])) == pytest.approx(expected)
    assert signal(means * [[0.5], [1.0]], np.array([5.0, 9.0]), np.array([2.0, 4.0])) is None


def test_the_signal_is_without_the_least_and_the_most_quarter():
    own = np.array([1.0, 0.01, 1.25, 1e9, 1.5])
    ones = np.ones(5)
    assert signal(own[:, None] ** 0.5, ones, ones) == pytest.approx(1.25)
    silent = np.append(own, np.zeros(9))  # nine clients that have bound nothing
    assert signal(silent[:, None] ** 0.5, np.ones(14), np.ones(14)) == pytest.approx(1.25)
    # Yuen: bounded to (1, 1, 1.25, 1.5, 1.5), whose squared deviations sum to 4 * 0.25^2, over 3 * 2
    error = (4 * 0.25**2 / 6) ** 0.5
    for times, is_told in ((1.4, False), (1.6, True)):
        shifted = own + times * error - 1.25 + 1  # all of one item and many answers: 1 is noise
        assert (signal(shifted[:, None] ** 0.5, ones, 1e12 * ones) is not None) == is_told


def test_distances_of_pairs_are_bounded():
    prompts, bound = np.array([[0.0], [0.1], [9.0]]), np.array([[1.0], [-1.0], [3.0]])
    clients, rows = Clients(prompts, bound, np.array([1e6, 1e6, 1.0]), 2.0), np.arange(3)
    found = clients.apart(rows[:2], rows, largest=0.02, near=0.5, far=1.9)
    # 0-1: half of prompts' 0.25 (0.01 / 0.02 of near), and 1 + 1/2 of answers; 0-2 and 1-2 are far
    across = (0.125**2 + 1.5**2) ** 0.5
    np.testing.assert_allclose(found, [[0.5, across, 1.9], [across, 0.5, 1.9]], atol=1e-4)
    agreeing = Clients(prompts, 9 * np.ones((3, 1)), np.array([1e6, 1e6, 1.0]), 2.0)
    # who agree more than with themselves, by chance: half of prompts' distance is left; never less than -near / 4
    assert agreeing.apart(rows[:1], rows[1:2], 0.02, 0.5, 1.9) == pytest.approx(0.125, abs=1e-4)
    by_chance = Clients(prompts, 9 * np.ones((3, 1)), np.ones(3), 2.0)
    assert by_chance.apart(rows[:1], rows[:1], 0.02, 0.5, 1.9) == -0.125
    told_nothing = Clients(prompts, bound, np.array([1e6, 1e6, 1.0]), None).apart(rows[:1], rows[:2], 0.02, 0.5, 1.9)
    np.testing.assert_allclose(told_nothing, [[0.0, 0.25]], atol=1e-4)
    # who has bound nothing is judged by prompts alone
    nothing = Clients(prompts, np.array([[1.0], [0.0], [3.0]]), 1e9 * np.ones(3), 2.0)
    np.testing.assert_allclose(nothing.apart(rows[:1], rows, 0.02, 0.5, 9), [[0.5, 0.25, 9]], atol=1e-4)
    # answers that are texts: the mean of both effect sizes over 4; who does not write is far
    wrote, wording = np.array([[0.0], [0.2], [np.nan]]), 20 * np.ones(3)
    texts = Clients(0 * prompts, 0 * bound, 1e9 * np.ones(3), None, wrote, wording).apart(rows, rows, 0.02, 0.5, 1.9)
    np.testing.assert_allclose(texts, [[0, 0.125, 1.9], [0.125, 0, 1.9], [1.9, 1.9, 0]], atol=1e-4)
    # one repeats its phrases ten times as often as the other: a unit across
    repeating = np.array([2.0, 20.0, 1.0])
    repeats = Clients(0 * prompts, 0 * bound, 1e9 * np.ones(3), None, wrote, repeating)
    texts = repeats.apart(rows, rows, 0.02, 0.5, 1.9)
    across = (0.125**2 + 1) ** 0.5
    np.testing.assert_allclose(texts, [[0, across, 1.9], [across, 0, 1.9], [1.9, 1.9, 0]], atol=1e-4)
    # of texts that come again, whole ones are counted, which says nothing of phrases
    again = replace(repeats, bound=np.array([[1.0], [0.0], [0.0]])).apart(rows[:1], rows[1:2], 0.02, 0.5, 1.9)
    assert again == pytest.approx(0.125, abs=1e-4)
    # of two texts by 10 items each: the mean of 0.2^2 - 2 / 10 and 0 - 2 / 10, less 2 / 10 once more
    ten = Clients(np.full((2, 1), 5.0), bound[:2], 10 * np.ones(2), None, wrote[:2] + 1, wording[:2])
    assert ten.apart(rows[:1], rows[1:2], 1.0, 4.0, 9)[0, 0] == pytest.approx(0.02 - 0.4)
    wide = replace(ten, texts=np.array([[0.0], [2.0]]))
    assert wide.apart(rows[:1], rows[1:2], 1.0, 4.0, 9)[0, 0] == pytest.approx((4 - 0.2 - 0.2) / 2 - 0.2)
    # of two that choose, by 10 items each: 0.7^2 - 2 / 10, less 0.3 times 2 / 10 more; with many items no less
    prompts = np.array([[0.0], [0.7]])
    few = Clients(prompts, bound[:2], 10 * np.ones(2), None).apart(rows[:1], rows[1:2], 1.0, 4.0, 9)
    many = Clients(prompts, bound[:2], 1e9 * np.ones(2), None).apart(rows[:1], rows[1:2], 1.0, 4.0, 9)
    assert (few[0, 0], many[0, 0]) == (pytest.approx(4 * (0.49 - 1.3 * 0.2)), pytest.approx(4 * 0.49))
    # one that says it has a single item is near in prompts, and its answers part it all the same
    lying = Clients(np.zeros((2, 1)), np.array([[1.0], [0.01]]), np.array([50.0, 1.0]), 1.0)
    assert lying.apart(rows[:1], rows[1:2], 0.02, 0.5, 1.9) == pytest.approx(0.99)


def test_mixtures_of_the_same_data_are_near_and_those_who_contradict_each_other_are_not():
    """Clients 0 and 1 hold three kinds of items, one of them in common; 2 has 0's prompts and answers of its own."""
    prompts = np.array([[0.2, 0.0], [0.0, 0.1], [0.2, 0.0]])
    bound = np.array([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 3.0, 0.0]])
    clients, rows = Clients(prompts, bound, 1e9 * np.ones(3), 3.0), np.arange(3)
    found = clients.apart(rows[:1], rows[1:], largest=0.08, near=0.8, far=1.2)
    # effect size 0.2^2 + 0.1^2, of which half counts, ten times; they agree in a third: less than 0.8
    np.testing.assert_allclose(found, [[(0.25**2 + (2 / 3) ** 2) ** 0.5, 1]], atol=1e-6)
    unknown = replace(clients, signal=None).apart(rows[:1], rows[1:], largest=0.08, near=0.8, far=1.2)
    np.testing.assert_allclose(unknown, [[0.5, 0.0]], atol=1e-6)  # prompts alone count whole


def test_the_nearest_third_of_a_group_counts_as_the_next_and_itself_not_at_all():
    apart = np.array([[0.1, 0.9, 0.5, 0.7]])
    assert from_group(apart) == pytest.approx(0.75)  # 0.7 for two of four, rounded up
    assert from_group(apart[:, :3]) == pytest.approx((0.5 + 0.5 + 0.9) / 3)
    assert from_group(apart[:, :2]) == pytest.approx(0.9)
    assert from_group(apart[:, :1]) == pytest.approx(0.1)
    itself = np.array([[False, True, False, False]])
    assert from_group(apart, itself) == pytest.approx((0.5 + 0.5 + 0.7) / 3)
    assert from_group(apart[:, :1], np.array([[True]])) == 0


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


def agreement(means, spread, items, answers):
    w = scaled(means, spread)
    found = signal(w, items, answers)
    return None if found is None else w @ w.T / found


def test_agreement_is_one_alike_and_not_positive_apart():
    told = [agreement(*bound_means([SAME, SAME, SHIFTED, SHIFTED], 30, s, 0.7)) for s in range(40)]
    found = np.mean([one for one in told if one is not None], 0)
    assert sum(one is None for one in told) < 4
    assert found[0, 1] == pytest.approx(1, abs=0.1)
    assert found[2, 3] == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(found[:2, 2:], -1 / 3, atol=0.1)  # four kinds that are centred have -1/3 in common


@pytest.mark.parametrize("n", [4, 8])
def test_where_answers_do_not_follow_prompts_nothing_is_told(n):
    told = [agreement(*bound_means([SAME] * n, 20, s, 0.0)) is not None for s in range(100)]
    assert 0 < np.mean(told) < 0.2  # one in fifteen, were the errors normal
    assert signal(np.ones((1, 3)), np.ones(1), np.ones(1)) is None


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


def test_groups_that_are_near_on_the_whole_become_one():
    def limit(pairs):
        return {1: 9.0, 2: 0.8, 3: 0.9, 4: 1.0, 6: 1.1}[pairs]

    # 0-1 and 2-3 by pairs 0.5, 0.9, 1.2 and 1.3: the nearest two of four count as 1.2
    apart = np.zeros((5, 5))
    apart[:2, 2:4] = [[0.5, 1.3], [1.2, 0.9]]
    apart[:2, 4] = [0.6, 0.8]
    apart[2:4, 4] = 2.0
    apart += apart.T
    assert merged(apart, [[0, 1], [2, 3]], limit) == [[0], [1]]  # (1.2 * 3 + 1.3) / 4
    assert merged(apart - 0.3, [[0, 1], [2, 3]], limit) == [[0, 1]]
    # 4 counts as 0.8 from 0-1, of two pairs the farther one
    assert merged(apart, [[2, 3], [0, 1], [4]], limit) == [[0], [1, 2]]
    assert merged(apart, [[0], [4]], limit) == [[0], [1]]  # two that are alone stay so
    # what has become one is looked at as a whole: six pairs, of which the nearest two count as 0.9, 7.1 / 6
    assert merged(apart - 0.3, [[0, 1], [2, 3], [4]], limit) == [[0, 2], [1]]
    assert merged(apart[:0, :0], [], limit) == []
