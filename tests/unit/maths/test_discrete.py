"""Discrete Gaussian noise: its numbers, its rounding, and that a sum of shares is as private as Gaussian noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import chisquare, norm

from capfl.maths.discrete import LEAST, Grid, discrete_gaussian, rounded
from capfl.maths.shares import fewest_opened

Doubles = np.ndarray


def mass(variance: float, reach: int) -> Doubles:
    """P(x) for x from -reach to reach, as the definition has it."""
    x = np.arange(-reach, reach + 1)
    weight = np.exp(-(x**2) / (2 * variance))
    return weight / weight.sum()


def words(*pairs: tuple[int, int]) -> bytes:
    """The random bytes of which the first and the second 64 bits of each number are these."""
    return np.array([[first for first, _ in pairs], [second for _, second in pairs]], "<u8").tobytes()


# -- the noise -----------------------------------------------------------------------------------------------------


def test_numbers_of_given_bits_by_hand() -> None:
    """sigma = 3: P(X < 0) is 0.43351, P(X < 1) is 0.56649, and P(X < -5) is 0.03275."""
    at = [0.4335, 0.4336, 0.5664, 0.5665, 0.0327, 0.0328]
    bits = words(*((int(p * 2**64), 0) for p in at), (0, 0), (2**64 - 1, 2**64 - 1), (2**63, 0))
    found = discrete_gaussian(9, 9.0, lambda n: bits)
    assert found.tolist() == [-1, 0, 0, 1, -6, -5, -40, 39, 0]


def test_the_second_half_of_the_bits_decides_where_the_first_is_that_of_a_limit() -> None:
    """Far out, where single numbers have less than 2^-64, it takes several steps."""
    low, high = -40, -30
    below = mass(9.0, 40)[: high - low].sum()  # P(X < -30), 2^-73.8
    second = int(below * 2**128)
    found = discrete_gaussian(3, 9.0, lambda n: words((0, 0), (0, int(0.99 * second)), (0, int(1.01 * second))))
    assert found.tolist() == [-40, -31, -30]


def test_numbers_are_as_frequent_as_they_should_be() -> None:
    drawn = discrete_gaussian(200_000, 9.5, np.random.default_rng(1).bytes)
    counts = np.bincount(np.clip(drawn, -9, 9) + 9, minlength=19)
    expected = mass(9.5, 60)
    expected[51] += expected[:51].sum()
    expected[69] += expected[70:].sum()
    assert chisquare(counts, 200_000 * expected[51:70]).pvalue > 1e-3


# -- rounding ------------------------------------------------------------------------------------------------------


def test_rounding_is_right_on_average_and_never_too_long() -> None:
    values, draw = np.array([0.25, -0.25, 3.0, -1.5, 0.0]), np.random.default_rng(2).bytes
    grid = Grid.of(5, 1, 1.0, 3, 3)
    values *= grid.steps / np.linalg.norm(values)
    many = np.stack([rounded(values, 1e9, draw) for _ in range(4000)])
    np.testing.assert_allclose(many.mean(axis=0), values, atol=0.04)  # five standard errors
    assert (np.abs(many - values) < 1).all()
    tried = np.stack([rounded(np.full(5, 0.5), 2.0, draw) for _ in range(2000)])  # 16 of 32 are short enough
    assert (tried**2).sum(axis=1).max() == 2
    assert rounded(np.array([2.0, -7.0]), 53.0, draw).tolist() == [2, -7]
    with pytest.raises(ValueError, match="of square norm 53 are to be rounded to one of 52"):
        rounded(np.array([2.0, -7.0]), 52.0, draw)


def test_the_grid_by_hand() -> None:
    grid = Grid.of(100, 1, 2.0, 4, 3)
    assert (grid.steps, grid.longest, grid.variance) == (10, 100 + 25 + 10 + 5, 4 * 140 / 3)
    assert grid.most(4) == 40 + math.ceil(10 * math.sqrt(4 * 4 * 140 / 3)) == 314
    assert grid.width == 10  # 629 numbers
    assert Grid.of(100, 4, 2.0, 4, 3).steps == 80
    assert Grid.of(100, 1, 1e-3, 4, 3).variance == LEAST**2


# -- privacy -------------------------------------------------------------------------------------------------------


def of_a_sum(grid: Grid, clients: int) -> Doubles:
    """The probabilities of the noise of so many, added up."""
    one = mass(grid.variance, math.ceil(14 * math.sqrt(grid.variance)))
    found = one
    for _ in range(clients - 1):
        found = np.convolve(found, one)
    return found


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
def test_a_sum_is_as_private_as_with_gaussian_noise(z: float) -> None:
    """Of one value, whose noise is computed exactly: Rényi divergences, and epsilon of one sum."""
    grid = Grid.of(1, 6, z, 3, 3)
    noise, shift = of_a_sum(grid, 3), int(math.sqrt(grid.longest))  # what one client can change
    noise = noise[noise > 1e-290]
    p, q = np.log(noise[shift:]), np.log(noise[:-shift])
    for order in (1.5, 2.0, 8.0):
        divergence = logsumexp(order * p + (1 - order) * q) / (order - 1)
        assert 0.9 * order / (2 * z**2) < divergence <= order / (2 * z**2) * (1 + 1e-9)

    def over(e: float) -> float:
        return float(np.maximum(noise[shift:] - math.exp(e) * noise[:-shift], 0).sum())

    def over_gaussian(e: float) -> float:
        return float(norm.cdf(1 / (2 * z) - e * z) - math.exp(e + norm.logcdf(-1 / (2 * z) - e * z)))

    found, gaussian = (brentq(lambda e, of=of: of(e) - 1e-5, 0, 50) for of in (over, over_gaussian))
    assert found == pytest.approx(gaussian, rel=0.02)


@pytest.mark.parametrize(("n", "fewest"), [(3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (30, 18)])
def test_the_fewest_that_a_lying_server_can_open(n: int, fewest: int) -> None:
    assert fewest_opened(n) == fewest
