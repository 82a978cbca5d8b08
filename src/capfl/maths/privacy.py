"""Differential privacy of sums with Gaussian noise: the noise, and how much privacy is left.

A mechanism is (epsilon, delta)-private if one client more or less changes the probability of any outcome by a factor
of at most exp(epsilon), but for a probability of delta: Dwork & Roth, The Algorithmic Foundations of Differential
Privacy, 2014.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.special import ndtri

from capfl.errors import ConfigError


def gaussian(n: int, draw: Callable[[int], bytes]) -> torch.Tensor:
    """Standard normal numbers (n,) in float64, each from 52 of the random bits that ``draw`` gives by the byte.

    By the inverse of the distribution function, so the farthest is 8.2 standard deviations off. Floating-point numbers
    are not all alike likely, which a reader of the last digits might use (Mironov 2012).
    """
    bits = np.frombuffer(draw(8 * n), "<u8") >> np.uint64(12)
    return torch.from_numpy(ndtri((bits.astype(np.float64) + 0.5) / 2**52))  # never 0 or 1: 53 bits say it exactly


def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """Epsilon, at ``delta``, of a client that took part in so many rounds; 0 for none.

    Each is a sum that the client changes by at most 1, with noise of standard deviation ``noise_multiplier``. Nothing
    is gained from who takes part, which is known. By Rényi divergences (Mironov, arXiv:1702.07476), which give an
    upper bound.

    Raises:
        ConfigError: the package dp-accounting is not installed.
    """
    try:
        import dp_accounting
        from dp_accounting.rdp import RdpAccountant
    except ImportError as error:
        raise ConfigError(
            "privacy.noise_multiplier: needs the package dp-accounting to count epsilon; pip install 'capfl[privacy]'"
        ) from error
    if not rounds:
        return 0.0
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier), rounds)
    return float(accountant.get_epsilon(delta))
