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


def frame_of(features: npt.NDArray[np.floating], scale: float = 1.0, spread: Doubles | None = None) -> Frame:
    """Median and standard deviation of every feature (n, d) over n clients; σ is ``scale`` times the median distance.

    The median is over the pairs of standardised clients that differ, and √d where no two do. A feature that does not
    vary, within float32 rounding, has spread 1.

    Args:
        spread: what else is to divide the features, (d,), such as the standard deviation over the items of a client.

    Raises:
        ValueError: no clients, not a matrix, a feature that is not finite, or a scale that is not positive.
    """
    raw = np.asarray(features, np.float64)
    if raw.ndim != 2 or not raw.size:
        raise ValueError(f"features have shape {raw.shape}, expected (clients, features)")
    if not np.isfinite(raw).all():
        raise ValueError("a feature is not finite")
    if not scale > 0:
        raise ValueError(f"scale is {scale}, expected a positive number")
    centre, spread = np.median(raw, axis=0), raw.std(axis=0) if spread is None else spread.copy()
    spread[spread <= _ROUNDING * np.abs(raw).max(axis=0)] = 1.0
    u = (raw - centre) / spread
    # row by row and not from inner products, which would leave a distance between rows that are equal
    distances = np.concatenate([np.linalg.norm(u[i + 1 :] - u[i], axis=1) for i in range(len(u))])
    apart = distances[distances > 0]
    typical = float(np.median(apart)) if len(apart) else u.shape[1] ** 0.5
    return Frame(centre, spread, scale * typical)


def frequencies(seed: int, d: int, dim: int) -> Doubles:
    """Ω, (dim / 2, d) float64, standard normal: the same for everybody who has the run's seed.

    Raises:
        ValueError: dim is not a positive even number.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim is {dim}, expected a positive even number")
    return stream(seed, "fourier").standard_normal((dim // 2, d))


def fourier(features: npt.NDArray[np.floating], frame: Frame, omega: Doubles) -> Doubles:
    """z = sqrt(2 / dim) [cos(Ω u / σ), sin(Ω u / σ)], u the standardised features.

    ||z|| = 1 and E[z · z'] = exp(-||u - u'||² / (2 σ²)) over Ω: Rahimi & Recht 2007. Features (..., d), omega
    (dim / 2, d); returns (..., dim) float64.

    Raises:
        ValueError: features, frame and omega do not have the same d.
    """
    if not np.shape(features)[-1:] == frame.centre.shape == omega.shape[1:]:
        raise ValueError(f"features {np.shape(features)}, frame {frame.centre.shape} and omega {omega.shape} differ")
    phase = (np.asarray(features, np.float64) - frame.centre) / frame.spread @ omega.T / frame.sigma
    z: Doubles = np.concatenate([np.cos(phase), np.sin(phase)], axis=-1) / len(omega) ** 0.5
    return z
