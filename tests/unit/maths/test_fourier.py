"""Random Fourier features: frames by hand, length one, and a kernel whose error is the one in the books."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.maths.fourier import Frame, fourier, frame_of, frequencies

PINNED = [[-0.044983, -0.892670, 1.412110], [1.293731, -1.097322, -1.661033]]


def plain(d: int, sigma: float = 1.0) -> Frame:
    return Frame(np.zeros(d), np.ones(d), sigma)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# -- frames ------------------------------------------------------------------------------------------------


def test_a_frame_by_hand():
    # standardised: (-1, -1), (1, -1), (-1, 1), (1, 1): four sides of 2, two diagonals of √8
    frame = frame_of(np.array([[0.0, 10.0], [2.0, 10.0], [0.0, 40.0], [2.0, 40.0]]), np.array([1.0, 15.0]))
    assert (frame.centre.tolist(), frame.spread.tolist(), frame.sigma) == ([1.0, 25.0], [1.0, 15.0], 2.0)


@given(st.integers(0, 999), st.floats(0.01, 1e3), st.floats(-1e3, 1e3))
def test_units_do_not_matter(seed, unit, shift):
    features, other = normal(seed, 5, 3), unit * normal(seed, 5, 3) + shift
    omega = frequencies(0, 3, 32)
    a = fourier(features, frame_of(features, features.std(axis=0)), omega)
    b = fourier(other, frame_of(other, other.std(axis=0)), omega)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_features_that_do_not_vary_have_spread_one_and_pairs_that_coincide_do_not_count():
    """A float32 state averaged over more items is not the same number."""
    features = np.stack([np.full(3, 0.1), np.array([1.0, 2.0, 3.0]), np.full(3, 7.0)], axis=1)
    assert frame_of(features, np.array([1e-17, 0.5, 3e-7])).spread.tolist() == [1.0, 0.5, 1.0]
    assert frame_of(np.array([[0.0]] * 9 + [[1.0]]), np.array([0.3])).sigma == pytest.approx(1 / 0.3)
    for n in (1, 3):
        frame = frame_of(np.array([[3.0, 0.1, -2.0, 0.0]] * n), np.zeros(4))
        assert (frame.spread.tolist(), frame.sigma) == ([1.0] * 4, 2.0)  # the root of four features


# -- frequencies -------------------------------------------------------------------------------------------


def test_frequencies_are_standard_normal_and_the_seeds():
    omega = frequencies(0, 50, 4000)
    assert omega.shape == (2000, 50)
    assert omega.dtype == np.float64
    assert abs(omega.mean()) < 0.02
    assert omega.std() == pytest.approx(1, abs=0.02)
    assert np.array_equal(omega, frequencies(0, 50, 4000))
    assert not np.array_equal(omega, frequencies(1, 50, 4000))


def test_frequencies_are_the_same_on_every_machine():
    """Clients draw them by themselves and compare their z."""
    np.testing.assert_allclose(frequencies(0, 3, 4), PINNED, atol=1e-6)


# -- features ----------------------------------------------------------------------------------------------


def test_features_by_hand():
    # u = ((3 - 1) / 2, (5 - 5) / 1) = (1, 0); phases π/3 and π/2 at sigma 1/2: omega (π/6, .), (π/4, .)
    frame = Frame(np.array([1.0, 5.0]), np.array([2.0, 1.0]), 0.5)
    omega = np.array([[math.pi / 6, 9.0], [math.pi / 4, -1.0]])
    z = fourier(np.array([3.0, 5.0]), frame, omega)
    np.testing.assert_allclose(z, np.array([0.5, 0.0, 0.75**0.5, 1.0]) / 2**0.5, atol=1e-15)


@given(st.integers(0, 999), st.sampled_from([2, 6, 256]), st.floats(0.01, 100))
def test_length_one(seed, dim, sigma):
    z = fourier(3 * normal(seed, 4, 2, 5), plain(5, sigma), frequencies(seed, 5, dim))
    assert z.shape == (4, 2, dim)
    assert z.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-12)


def kernel_error(dim: int, frame: Frame) -> tuple[float, float]:
    """Root mean square of z·z' - k over seeds and pairs, and what it should be: (1 - k²) / √dim each.

    Sutherland & Schneider, arXiv:1506.02785, proposition 1, for the Gaussian kernel.
    """
    a, b = normal(1, 40, 4), normal(2, 40, 4)
    kernel = np.exp(-(((a - b) / frame.spread) ** 2).sum(axis=1) / (2 * frame.sigma**2))
    assert 0.02 < np.median(kernel) < 0.9  # pairs near and far
    omegas = [frequencies(seed, 4, dim) for seed in range(50)]
    estimates = np.array([(fourier(a, frame, o) * fourier(b, frame, o)).sum(axis=1) for o in omegas])
    assert abs((estimates - kernel).mean()) < 4 / (2000 * dim) ** 0.5  # no bias
    return ((estimates - kernel) ** 2).mean() ** 0.5, (((1 - kernel**2) ** 2).mean() / dim) ** 0.5


def test_the_kernel_and_its_error_fall_as_one_over_the_root_of_the_dimension():
    frame = Frame(normal(3, 4), np.array([0.5, 1.0, 2.0, 3.0]), 2.0)
    errors = []
    for dim in (64, 256, 1024):
        error, expected = kernel_error(dim, frame)
        assert error == pytest.approx(expected, rel=0.15)
        errors.append(error)
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)
