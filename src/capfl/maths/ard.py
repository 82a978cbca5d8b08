"""Automatic relevance determination without learning: the importances that a client's factors have by themselves.

MacKay, Bayesian non-linear modelling for the prediction competition, ASHRAE Trans. 100(2), 1994; for the Laplace
likelihood, whose conjugate prior is a Gamma on the inverse scale, Park & Casella, The Bayesian Lasso, JASA 103, 2008.
"""

from __future__ import annotations

from torch import Tensor

from capfl.maths.gamma import Gamma


def exact(prior: Gamma, norm: Tensor, d: Tensor) -> Tensor:
    """E[κ | b] = (β_g + ||b||₁) / (α_g + d - 1), of the shape (n,) of the prior, float64.

    The prior is of τ = 1/κ, not of κ: then p(b | τ) ∝ τ^d exp(-τ ||b||₁) has the posterior Gamma(α_g + d, β_g +
    ||b||₁) of τ.

    Args:
        prior: of τ, (n,).
        norm: ||b||₁, (n,), not negative.
        d: elements of b, (n,).

    Raises:
        ValueError: α_g + d is at most 1, and the expectation infinite.
    """
    return Gamma(prior.alpha + d, prior.beta + norm).mean_inverse()
