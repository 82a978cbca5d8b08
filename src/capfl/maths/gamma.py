"""Gamma distributions of the importances κ, in shape–rate form.

Density β^α κ^(α-1) exp(-β κ) / Γ(α), mean α / β. KL divergence: Penny, KL-Divergences of Normal, Gamma, Dirichlet and
Wishart densities, UCL 2001. The barycentre is the moment projection of a mixture onto an exponential family: Minka,
Divergence measures and message passing, MSR-TR-2005-173.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGE = 16.0  # from here on the series is exact to the last digits, and ln α - ψ(α) would lose them
_NEWTON_STEPS = 8


@dataclass(frozen=True)
class Gamma:
    """Independent Gamma(alpha, beta), one for every element.

    Attributes:
        alpha: shapes, any shape, float64, positive.
        beta: rates, as ``alpha``.

    Raises:
        ValueError: they differ in shape, are not float64, or are not positive and finite.
    """

    alpha: Tensor
    beta: Tensor

    def __post_init__(self) -> None:
        if self.alpha.shape != self.beta.shape:
            raise ValueError(f"alpha has shape {tuple(self.alpha.shape)}, beta {tuple(self.beta.shape)}")
        for name, t in (("alpha", self.alpha), ("beta", self.beta)):
            if t.dtype != torch.float64:
                raise ValueError(f"{name} is {t.dtype}, expected torch.float64")
            if not bool(((t > 0) & t.isfinite()).all()):
                raise ValueError(f"{name} is not positive and finite everywhere")

    def mean(self) -> Tensor:
        """E[κ] = α / β, of the shape of ``alpha``, float64."""
        return self.alpha / self.beta

    def mean_inverse(self) -> Tensor:
        """E[1/κ] = β / (α - 1), of the shape of ``alpha``, float64.

        Raises:
            ValueError: an alpha is at most 1, and the expectation infinite.
        """
        if bool((self.alpha <= 1).any()):
            raise ValueError(
                f"E[1/kappa] is infinite: the smallest alpha is {self.alpha.min().item():.6g}, not above 1"
            )
        return self.beta / (self.alpha - 1)

    def mean_log(self) -> Tensor:
        """E[ln κ] = ψ(α) - ln β, of the shape of ``alpha``, float64."""
        return self.alpha.digamma() - self.beta.log()


def kl(q: Gamma, p: Gamma) -> Tensor:
    """KL(q || p) for every element; gradients flow to both.

    (α - α₀) ψ(α) - ln Γ(α) + ln Γ(α₀) + α₀ (ln β - ln β₀) + α (β₀ / β - 1), q = Gamma(α, β), p = Gamma(α₀, β₀): Penny
    2001. Float64, of the shape that q and p broadcast to.
    """
    a, b, a0, b0 = q.alpha, q.beta, p.alpha, p.beta
    return (a - a0) * a.digamma() - a.lgamma() + a0.lgamma() + a0 * (b.log() - b0.log()) + a * (b0 / b - 1)


def barycentre(parts: Iterable[tuple[Gamma, float]]) -> Gamma:
    """The Gamma p that minimises sum_i w_i KL(q_i || p) over (q_i, w_i): the one with the mixture's E[κ] and E[ln κ].

    ln α - ψ(α) = ln E[κ] - E[ln κ] by Newton's method in ln α, β = α / E[κ]: Minka 2005, with the sufficient statistics
    κ and ln κ. One part at a time, so that they need not be in memory together. The α of parts that differ much is
    below theirs, and may be below 1: two Gammas of α = 2 need only have means 5.2 times apart.

    Args:
        parts: one at least, of one shape, with positive weights.
    """
    first: Tensor | None = None
    sums, total = torch.zeros(()), 0.0
    for part, weight in parts:
        mean = part.mean()
        if first is None:
            first, sums = mean, mean.new_zeros(3, *mean.shape)
        # relative to the first, so that equal parts have a spread of exactly zero, whatever their sizes
        sums = sums + weight * torch.stack([(mean - first) / first, (mean / first).log(), _gap(part.alpha)])
        total += weight
    assert first is not None
    excess, log, gap = sums / total
    return matched(first * (1 + excess), gap + (excess.log1p() - log).clamp_min(0))


def matched(mean: Tensor, gap: Tensor) -> Gamma:
    """The Gamma with E[κ] = ``mean`` and ln E[κ] - E[ln κ] = ``gap`` > 0, float64 both."""
    alpha = _shape(gap)
    return Gamma(alpha, alpha / mean)


def moved(old: Gamma, new: Gamma, share: float) -> Gamma:
    """``share`` (0 to 1) of the way from old to new in log space: α = α_old^(1-share) α_new^share, and β alike."""
    alpha, beta = ((a ** (1 - share)) * b**share for a, b in ((old.alpha, new.alpha), (old.beta, new.beta)))
    return Gamma(alpha, beta)


def _gap(alpha: Tensor) -> Tensor:
    """ln α - ψ(α), to nearly full relative precision: Abramowitz & Stegun, 6.3.18, where α is large."""
    x = alpha.square().reciprocal()
    series = x * (1 / 12 - x * (1 / 120 - x * (1 / 252 - x * (1 / 240 - x / 132)))) + 1 / (2 * alpha)
    return torch.where(alpha < _LARGE, alpha.log() - alpha.digamma(), series)


def _shape(gap: Tensor) -> Tensor:
    """The α with ln α - ψ(α) = gap > 0."""
    # within 1.5 % everywhere; and ln gap is all but linear in ln α, so a few steps are enough
    alpha = (3 - gap + ((gap - 3).square() + 24 * gap).sqrt()) / (12 * gap)
    for _ in range(_NEWTON_STEPS):
        here = _gap(alpha)
        slope = torch.where(alpha < _LARGE, (1 - alpha * torch.polygamma(1, alpha)) / here, -1.0)
        alpha = alpha * ((gap.log() - here.log()) / slope).exp()
    return alpha
