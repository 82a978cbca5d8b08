"""The map from a client's features to its own posterior of the importances κ.

After FedP2EFT (Lee et al., arXiv:2502.04387), which generates ranks from a client's features; here the global prior
is modulated by a low-rank map that is zero to begin with, as in LoRA (Hu et al., arXiv:2106.09685, sec. 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capfl.maths.gamma import Gamma, kl
from capfl.rng import stream


@dataclass(frozen=True)
class Modulator:
    """v = up down z, whose halves move alpha and beta.

    Attributes:
        down: (h, dim) float32.
        up: (2n, h) float32.
    """

    down: Tensor
    up: Tensor


def init(seed: int, dim: int, hidden: int, n: int) -> Modulator:
    """down ~ N(0, 1 / hidden), so that E||down z||² = 1 for ||z|| = 1, the same for all with the run's seed; up = 0."""
    down = stream(seed, "modulator").standard_normal((hidden, dim)) / hidden**0.5
    return Modulator(torch.from_numpy(down).float(), torch.zeros(2 * n, hidden))


def posterior(modulator: Modulator, z: Tensor, prior: Gamma) -> Gamma:
    """q = Gamma(1 + (α_g - 1) exp(v₁), β_g exp(v₂)) for features z (dim,), and a prior with α_g > 1 of shape (n,).

    It is α - 1 that is modulated, and not α, so that α stays above 1, where E[1/κ] = β / (α - 1) is finite and its
    gradient bounded away from a pole; then E[1/κ] is just exp(v₂ - v₁) times the prior's. With v = 0 it is the prior,
    bit for bit. Gradients flow to the modulator.

    Raises:
        ValueError: v is so large that q overflows.
    """
    v = modulator.up.double() @ (modulator.down.double() @ z.double())
    v_alpha, v_beta = v.chunk(2)
    return Gamma(1 + (prior.alpha - 1) * v_alpha.exp(), prior.beta * v_beta.exp())


def objective(modulator: Modulator, z: Tensor, prior: Gamma, h: Tensor, weight_h: float, weight_kl: float) -> Tensor:
    """weight_h (Σ h E[1/κ] + Σ E[ln κ]) + weight_kl Σ KL(q || prior) with q the posterior for z; a float64 scalar.

    The part of the negative evidence lower bound that depends on q, in closed form: E_q of -ln p(b | κ) for the prior
    κ⁻¹ exp(-h / κ) of BayesTune (Kim & Hospedales, NeurIPS 2023), and the divergence. ``h`` is (n,).

    Raises:
        ValueError: as ``posterior``, or an alpha of the prior is at most 1.
    """
    q = posterior(modulator, z, prior)
    return weight_h * (h.double() * q.mean_inverse() + q.mean_log()).sum() + weight_kl * kl(q, prior).sum()


def fit(
    modulator: Modulator,
    z: Tensor,
    prior: Gamma,
    h: Tensor,
    weight_h: float,
    weight_kl: float,
    steps: int,
    rate: float,
) -> Modulator:
    """The modulator after some steps of Adam (Kingma & Ba, arXiv:1412.6980) on ``objective``; its argument stays.

    The rate falls to nothing in a straight line: at a constant one the modulator never settles, and what it adds
    to the posterior of noise grows from round to round.

    Raises:
        ValueError: as ``objective``.
    """
    learnt = Modulator(*(t.detach().clone().requires_grad_() for t in (modulator.down, modulator.up)))
    optimiser = torch.optim.Adam([learnt.down, learnt.up], lr=rate)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        objective(learnt, z, prior, h, weight_h, weight_kl).backward()
        optimiser.step()
    return Modulator(learnt.down.detach(), learnt.up.detach())
