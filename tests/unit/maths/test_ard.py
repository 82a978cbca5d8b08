"""Automatic relevance determination in closed form: by hand, and against the integral."""

from __future__ import annotations

import pytest
import torch

from capfl.maths.ard import exact
from capfl.maths.gamma import Gamma


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    prior = Gamma(doubles(2.0, 3.0), doubles(1.0, 0.5))
    got = exact(prior, doubles(4.0, 1.5), torch.tensor([4, 8]))
    assert got.tolist() == [5 / 5, 2 / 10]  # (1 + 4) / (2 + 4 - 1), (0.5 + 1.5) / (3 + 8 - 1)
    assert got.dtype == torch.float64


def test_it_is_the_posterior_mean():
    """E[1/τ | b] by quadrature, with the prior of τ times the Laplace likelihood of b."""
    b = doubles(0.3, -1.2, 0.05)
    alpha, beta = 1.7, 0.4
    tau = torch.linspace(-12, 8, 20_001, dtype=torch.float64).exp()  # even in ln τ
    likelihood = torch.distributions.Laplace(0.0, 1 / tau[:, None]).log_prob(b).sum(dim=1)
    log_density = torch.distributions.Gamma(alpha, beta).log_prob(tau) + likelihood + tau.log()
    weights = log_density.softmax(dim=0)
    got = exact(Gamma(doubles(alpha), doubles(beta)), b.abs().sum()[None], torch.tensor([3]))
    assert got.item() == pytest.approx((weights / tau).sum().item(), rel=1e-7)


def test_without_a_prior_to_speak_of_it_is_the_mean_magnitude():
    vague = Gamma(doubles(1.0, 1.0), doubles(1e-12, 1e-12))
    norm, d = torch.tensor([6.0, 1.5]), torch.tensor([3.0, 3.0])  # float32, as a client has them
    torch.testing.assert_close(exact(vague, norm, d), doubles(2.0, 0.5))


def test_an_infinite_expectation_is_refused():
    with pytest.raises(ValueError, match=r"smallest alpha is 0\.5"):
        exact(Gamma(doubles(0.5), doubles(1.0)), doubles(1.0), torch.tensor([0]))
