"""The modulator: the prior to begin with, gradients that are right and not zero, and importances in the right order."""

from __future__ import annotations

import math

import pytest
import torch

from capfl.maths.gamma import Gamma, kl
from capfl.maths.modulator import Modulator, fit, init, objective, posterior


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


PRIOR = Gamma(doubles(2.0, 1.3, 7.1), doubles(1.0, 0.2, 30.0))
H = doubles(0.3, 2.0, 0.05)
Z = torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(0)), dim=0)


def moved() -> Modulator:
    """A modulator that has left the prior."""
    start = init(0, 16, 4, 3)
    return Modulator(start.down, 0.3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))


# -- start -------------------------------------------------------------------------------------------------


def test_the_start():
    modulator = init(0, 256, 16, 3)
    assert modulator.down.shape == (16, 256)
    assert modulator.up.shape == (6, 16)
    assert modulator.down.dtype == modulator.up.dtype == torch.float32
    assert not modulator.up.any()
    assert modulator.down.equal(init(0, 256, 16, 3).down)
    assert not modulator.down.equal(init(1, 256, 16, 3).down)


def test_the_posterior_is_the_prior_at_the_start():
    prior = Gamma(1 + torch.logspace(-6, 6, 500).double(), torch.logspace(-9, 9, 500).double())
    q = posterior(init(3, 16, 4, 500), Z, prior)
    assert q.alpha.equal(prior.alpha)
    assert q.beta.equal(prior.beta)


# -- posterior ---------------------------------------------------------------------------------------------


def test_a_posterior_by_hand():
    # down z = 1, v = (ln 2, 0, ln 3, -ln 2)
    modulator = Modulator(
        torch.tensor([[0.5, 2.0]]), torch.tensor([[math.log(2)], [0.0], [math.log(3)], [-math.log(2)]])
    )
    q = posterior(modulator, torch.tensor([2.0, 0.0]), Gamma(doubles(4.0, 3.0), doubles(1.0, 6.0)))
    assert q.alpha.tolist() == pytest.approx([7.0, 3.0], rel=1e-7)  # 1 + 3 * 2, 1 + 2
    assert q.beta.tolist() == pytest.approx([3.0, 3.0], rel=1e-7)
    assert q.mean_inverse().tolist() == pytest.approx([3 / 6, 3 / 2], rel=1e-7)


def test_alpha_stays_above_one_and_clients_differ():
    for scale in (1.0, 10.0):
        modulator = Modulator(moved().down, scale * moved().up)
        q, other = posterior(modulator, Z, PRIOR), posterior(modulator, -Z, PRIOR)
        assert (q.alpha > 1).all()
        assert (q.mean() != other.mean()).all()
        # opposite clients lie on opposite sides of the prior
        torch.testing.assert_close((q.alpha - 1) * (other.alpha - 1), (PRIOR.alpha - 1) ** 2)
        torch.testing.assert_close(q.beta * other.beta, PRIOR.beta**2)


# -- objective ---------------------------------------------------------------------------------------------


def test_an_objective_by_hand():
    """At the start q is the prior: h β / (α - 1) + ψ(α) - ln β, and no divergence."""
    prior = Gamma(doubles(2.0, 3.0), doubles(4.0, 1.0))
    euler = 0.5772156649015329
    expected = 0.5 * (0.25 * 4 + 2 * 0.5 + (1 - euler - math.log(4)) + (1.5 - euler))
    got = objective(init(0, 16, 4, 2), Z, prior, doubles(0.25, 2.0), 0.5, 9.0)
    assert got.dtype == torch.float64
    assert got.item() == pytest.approx(expected, abs=1e-14)


def test_both_parts_have_their_weights():
    q = posterior(moved(), Z, PRIOR)
    parts = (H * q.mean_inverse() + q.mean_log()).sum().item(), kl(q, PRIOR).sum().item()
    assert parts[1] > 0.1
    for a, b in ((1.0, 0.0), (0.0, 1.0), (0.3, 5.0)):
        assert objective(moved(), Z, PRIOR, H, a, b).item() == pytest.approx(a * parts[0] + b * parts[1], rel=1e-12)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.2)])
def test_its_gradient_is_that_of_finite_differences(weights):
    parameters = [t.double().requires_grad_() for t in (moved().down, moved().up)]
    assert torch.autograd.gradcheck(
        lambda down, up: objective(Modulator(down, up), Z, PRIOR, H, *weights), parameters, atol=1e-7, rtol=1e-6
    )


# -- fit ---------------------------------------------------------------------------------------------------


def test_a_fit_lowers_the_objective_and_moves_both_matrices():
    start = init(0, 16, 4, 3)
    fitted = fit(start, Z, PRIOR, H, 1.0, 0.1, 20, 1e-2)
    values = [objective(m, Z, PRIOR, H, 1.0, 0.1).item() for m in (start, fitted)]
    assert values[1] < values[0] - 0.01
    assert not fitted.down.equal(start.down)
    assert fitted.up.any(dim=1).all()
    assert fitted.down.dtype == fitted.up.dtype == torch.float32
    assert not fitted.down.requires_grad
    assert not fitted.up.requires_grad


def test_refits_settle():
    """From round to round, each from the modulator before; at a rate that does not fall this ends far away."""
    generator = torch.Generator().manual_seed(0)
    prior = Gamma(torch.full((64,), 1.5).double(), torch.full((64,), 150.0).double())
    lasting = 0.5 * torch.randn(64, generator=generator, dtype=torch.float64)
    modulator = init(0, 16, 8, 64)
    for _ in range(8):
        h = 0.01 * (lasting + 0.3 * torch.randn(64, generator=generator, dtype=torch.float64)).exp()
        modulator = fit(modulator, Z, prior, h, 1.0, 1.0, 50, 0.02)
        kappa = posterior(modulator, Z, prior).mean()
        assert torch.corrcoef(torch.stack([kappa.log(), h.log()]))[0, 1] > 0.98


def test_what_is_larger_is_more_important_and_arguments_stay():
    """From one prior for all, with no divergence: E[κ] in the order of h, and near to it, as kappa* = h says."""
    h, start = doubles(0.02, 5.0, 0.3, 1.0, 0.1), init(0, 16, 4, 5)
    prior = Gamma(torch.full_like(h, 2.0), torch.full_like(h, 2.0))
    q = posterior(fit(start, Z, prior, h, 1.0, 0.0, 400, 2e-2), Z, prior)
    assert q.mean().argsort().tolist() == h.argsort().tolist()
    torch.testing.assert_close(1 / q.mean_inverse(), h, rtol=0.02, atol=0)  # stationary in beta: h E[1/κ] = 1
    again = init(0, 16, 4, 5)
    assert start.down.equal(again.down)
    assert start.up.equal(again.up)
