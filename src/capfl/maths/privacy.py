"""Differential privacy of sums with Gaussian noise: the noise, and how much privacy is left.

A mechanism is (epsilon, delta)-private if one client, or one item, more or less changes the probability of any outcome
by a factor of at most exp(epsilon), but for a probability of delta: Dwork & Roth, The Algorithmic Foundations of
Differential Privacy, 2014.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtri

from capfl.errors import ConfigError
from capfl.rng import Draw

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
"""Of Rényi divergences of sampled sums. Any will do for an upper bound, and whole ones have a finite formula."""


def gaussian(n: int, draw: Draw) -> torch.Tensor:
    """Standard normal numbers (n,) in float64, each from 52 of the random bits that ``draw`` gives by the byte.

    By the inverse of the distribution function, so the farthest is 8.2 standard deviations off. Floating-point numbers
    are not all alike likely, which a reader of the last digits might use (Mironov 2012).
    """
    bits = np.frombuffer(draw(8 * n), "<u8") >> np.uint64(12)
    return torch.from_numpy(ndtri((bits.astype(np.float64) + 0.5) / 2**52))  # never 0 or 1: 53 bits say it exactly


def epsilon(noise_multiplier: float, sums: int, delta: float, share: float = 1.0) -> float:
    """Epsilon, at ``delta``, of somebody who may be part of so many sums; 0 for none.

    Each sum is changed by at most 1, and has noise of standard deviation ``noise_multiplier``. Who takes part is known,
    or secret: then each is part of each sum with probability ``share``, independently of everybody (Mironov, Talwar &
    Zhang, arXiv:1908.10530). By Rényi divergences (Mironov, arXiv:1702.07476), which give an upper bound.

    Raises:
        ConfigError: the package dp-accounting is not installed.
    """
    try:
        import dp_accounting.rdp  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "privacy.noise_multiplier: needs the package dp-accounting to count epsilon; pip install 'capfl[privacy]'"
        ) from error
    return _epsilon(noise_multiplier, sums, delta, share) if sums else 0.0


@lru_cache(maxsize=10_000)
def _epsilon(noise_multiplier: float, sums: int, delta: float, share: float) -> float:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
    if share < 1:
        event = dp_accounting.PoissonSampledDpEvent(share, event)
    orders, relation = ORDERS if share < 1 else None, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = RdpAccountant(orders, neighboring_relation=relation)
    accountant.compose(event, sums)
    return float(accountant.get_epsilon(delta))
