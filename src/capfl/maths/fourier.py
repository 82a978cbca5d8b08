"""Random Fourier features: vectors whose inner products are a Gaussian kernel of the clients' features.

Rahimi & Recht, Random Features for Large-Scale Kernel Machines, NeurIPS 2007, in the form with a cosine and a sine for
every frequency: z has length one, and the error is the smaller (Sutherland & Schneider, On the Error of Random Fourier
Features, arXiv:1506.02785). The median heuristic for σ: Garreau et al., arXiv:1707.07269.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfl.rng import stream

Doubles = npt.NDArray[np.float64]

ENOUGH = 300  # clients whose pairs tell how wide the kernel is
_ROUNDING = 1e-6  # features are computed in float32: one that varies by less has nothing to say


@dataclass(frozen=True)
class Frame:
    """How raw features are standardised and scaled.

    Attributes:
        centre: subtracted from each feature, (d,) float64.
        spread: divides each feature, (d,) float64, positive.
        sigma: width of the kernel, in standardised units, positive.
    """

    centre: Doubles
    spread: Doubles
    sigma: float


def frame_of(features: Doubles, spread: Doubles) -> Frame:
    """The median of every feature (n, d) over n clients, at least one; σ is the median distance of two of them.

    The median is over the pairs of standardised clients that differ, and √d where no two do; of many clients, over the
    pairs of ``ENOUGH`` of them, evenly over their order.

    Args:
        spread: what divides the features, (d,), such as their standard deviation over the items of a client. Where it
            is nothing, within float32 rounding, it becomes 1.
    """
    centre = np.median(features, axis=0)
    spread = np.where(spread <= _ROUNDING * np.median(np.abs(features), axis=0), 1.0, spread)
    n = min(len(features), ENOUGH)
    u = (features[np.arange(n) * len(features) // n] - centre) / spread
    # row by row and not from inner products, which would leave a distance between rows that are equal
    distances = np.concatenate([np.linalg.norm(u[i + 1 :] - u[i], axis=1) for i in range(len(u))])
    apart = distances[distances > 0]
    return Frame(centre, spread, float(np.median(apart)) if len(apart) else u.shape[1] ** 0.5)


def frequencies(seed: int, d: int, dim: int) -> Doubles:
    """Ω, (dim / 2, d) float64, standard normal: the same for everybody who has the run's seed. ``dim`` is even."""
    return stream(seed, "fourier").standard_normal((dim // 2, d))


def fourier(features: npt.NDArray[np.floating], frame: Frame, omega: Doubles) -> Doubles:
    """z = sqrt(2 / dim) [cos(Ω u / σ), sin(Ω u / σ)], u the standardised features.

    ||z|| = 1 and E[z · z'] = exp(-||u - u'||² / (2 σ²)) over Ω: Rahimi & Recht 2007. Features (..., d), omega
    (dim / 2, d); returns (..., dim) float64.
    """
    phase = (np.asarray(features, np.float64) - frame.centre) / frame.spread @ omega.T / frame.sigma
    z: Doubles = np.concatenate([np.cos(phase), np.sin(phase)], axis=-1) / len(omega) ** 0.5
    return z
