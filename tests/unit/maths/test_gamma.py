"""Gammas: moments and divergences by hand and against torch, and a barycentre that has the mixture's moments."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Gamma as Peer
from torch.distributions import kl_divergence

from capfl.maths.gamma import Gamma, barycentre, kl, moved

EULER = 0.5772156649015329
E_HALF = (math.e + math.sqrt(math.e**2 - 4)) / 2  # root of x + 1/x = e


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one(alpha: float, beta: float) -> Gamma:
    return Gamma(doubles(alpha), doubles(beta))


def close(got: Gamma, expected: Gamma, rtol: float) -> None:
    torch.testing.assert_close(got.alpha, expected.alpha, rtol=rtol, atol=0)
    torch.testing.assert_close(got.beta, expected.beta, rtol=rtol, atol=0)


positive = st.floats(-3, 3).map(lambda x: 10.0**x)
gammas = st.builds(one, positive, positive)
mixtures = st.lists(st.tuples(gammas, st.floats(0.01, 100)), min_size=1, max_size=6)


# -- moments -----------------------------------------------------------------------------------------------


def test_moments_by_hand():
    gamma = Gamma(doubles(2.0, 3.0), doubles(4.0, 1.0))
    assert gamma.mean().tolist() == [0.5, 3.0]
    assert gamma.mean_inverse().tolist() == [4.0, 0.5]
    expected = [1 - EULER - math.log(4), 1.5 - EULER]  # ψ(2) = 1 - γ, ψ(3) = 3/2 - γ
    assert gamma.mean_log().tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_an_infinite_expectation_is_refused(alpha):
    with pytest.raises(ValueError, match=f"smallest alpha is {alpha:g}"):
        Gamma(doubles(3.0, alpha, 1.0), doubles(1.0, 1.0, 1.0)).mean_inverse()


@pytest.mark.parametrize(
    ("alpha", "beta", "message"),
    [
        (doubles(1.0, 2.0), doubles(1.0), r"shape \(2,\), beta \(1,\)"),
        (torch.ones(1), doubles(1.0), "alpha is torch.float32"),
        (doubles(1.0), torch.ones(1), "beta is torch.float32"),
        (doubles(1.0, 0.0), doubles(1.0, 1.0), "alpha is not positive"),
        (doubles(1.0), doubles(-1.0), "beta is not positive"),
        (doubles(math.nan), doubles(1.0), "alpha is not positive"),
        (doubles(1.0), doubles(math.inf), "beta is not positive and finite"),
    ],
)
def test_what_is_no_gamma(alpha, beta, message):
    with pytest.raises(ValueError, match=message):
        Gamma(alpha, beta)


# -- divergence --------------------------------------------------------------------------------------------


def test_divergences_by_hand():
    # exponentials: ln(b / b0) + b0 / b - 1;  Gamma(2, 1) from Gamma(1, 1): ψ(2) - ln Γ(2) = 1 - γ
    assert kl(one(1, 2), one(1, 1)).item() == pytest.approx(math.log(2) - 0.5, abs=1e-15)
    assert kl(one(2, 1), one(1, 1)).item() == pytest.approx(1 - EULER, abs=1e-15)
    assert kl(one(1, 1), one(2, 1)).item() == pytest.approx(EULER, abs=1e-15)


@settings(max_examples=40)
@given(gammas, gammas)
def test_divergences_are_those_of_torch(q, p):
    expected = kl_divergence(Peer(q.alpha, q.beta), Peer(p.alpha, p.beta))
    torch.testing.assert_close(kl(q, p), expected, rtol=1e-7, atol=1e-7)


# -- barycentre --------------------------------------------------------------------------------------------


def test_a_barycentre_by_hand():
    """Gamma(2, 1) and Gamma(2, 1/r) have mean 1 + r and gap ln 2 + γ - 1 + ln((1 + r) / (2 √r)).

    With √r + 1/√r = e the second logarithm is 1 - ln 2, and the gap is γ = ln 1 - ψ(1).
    """
    r = E_HALF**2
    close(barycentre([(one(2, 1), 1.0), (one(2, 1 / r), 1.0)]), one(1, 1 / (1 + r)), 1e-12)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_parts_give_themselves_back(count):
    """For gaps from 1e-12 (alpha 5e11) to 50 (alpha 0.019), at any scale."""
    alpha = torch.logspace(math.log10(0.019), math.log10(5e11), 2001, dtype=torch.float64)
    for scale in (1e-9, 1.0, 1e9):
        part = Gamma(alpha, alpha / scale)
        close(barycentre((part, 0.1 * (k + 1)) for k in range(count)), part, 1e-13)


@settings(max_examples=40)
@given(mixtures)
def test_it_has_the_moments_of_the_mixture(parts):
    got = barycentre(parts)
    total = sum(w for _, w in parts)
    mean = sum(w * p.mean().item() for p, w in parts) / total
    mean_log = sum(w * p.mean_log().item() for p, w in parts) / total
    assert got.mean().item() == pytest.approx(mean, rel=1e-12)
    assert got.mean_log().item() == pytest.approx(mean_log, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("alpha", [15.9, 16.1, 17.0, 40.0])
def test_the_series_for_large_shapes_is_the_function(alpha):
    """The parts are beyond where it takes over, what comes out is not."""
    parts = [one(alpha, 1), one(alpha, 5)]
    got = barycentre((p, 1.0) for p in parts)
    assert got.alpha.item() < 10
    expected = sum(p.mean_log().item() for p in parts) / 2
    assert got.mean_log().item() == pytest.approx(expected, abs=1e-13)


# -- momentum ----------------------------------------------------------------------------------------------


def test_moves_by_hand():
    close(moved(one(2, 1), one(8, 100), 0.5), one(4, 10), 1e-15)
    close(moved(one(2, 1), one(16, 1000), 1 / 3), one(4, 10), 1e-15)


@given(gammas, gammas, st.floats(0, 1))
def test_moves_reach_both_ends_and_nothing_beyond(old, new, share):
    assert moved(old, new, 0.0).alpha.equal(old.alpha)
    assert moved(old, new, 1.0).beta.equal(new.beta)
    way = moved(old, new, share)
    assert way.alpha.log().item() == pytest.approx(
        (1 - share) * old.alpha.log().item() + share * new.alpha.log().item(), abs=1e-12
    )
