r"""Gaussian noise in whole numbers, of which each client adds a share, so that a sum under masks is private.

The distributed discrete Gaussian mechanism: Kairouz, Liu & Steinke, The Distributed Discrete Gaussian Mechanism for
Federated Learning with Secure Aggregation, ICML 2021, arXiv:2102.06387. A client's change, n values clipped to the L2
norm C, is multiplied by S / C and rounded at random, right on average, again and again until its norm is at most

.. math:: \Delta^2 = S^2 + n / 4 + S + \sqrt{n} / 2.

That is conditional rounding, theorem 1 with :math:`\beta = e^{-1/2}`; no attempt fails with a probability above beta.
To every number the client adds one of the discrete Gaussian with :math:`\sigma^2 = z^2 \Delta^2 / t`. A sum with the
noise of t clients or more then has, for one client's change in the place of zeros, a Rényi divergence of order
:math:`\alpha` of at most (proposition 14)

.. math:: \frac{\alpha}{2 z^2} + \tau n, \qquad \tau = 10 \sum_{k=1}^{m-1} e^{-2 \pi^2 \sigma^2 k / (k + 1)},

m being the clients in it. The first term is that of Gaussian noise with the multiplier z, so ``maths.privacy.epsilon``
counts it. The second, for sigma of ``LEAST`` or more, is below 1e-25 for a thousand clients and a billion values.

:math:`S = 2^{b-1} \sqrt{n}` for values of b bits: so the values of a change that is C long and equal everywhere lie
:math:`2^{b-1}` steps off zero. Rounding then lengthens the change, and with it the noise, by about 12 % for b = 1, 3 %
for 2 and less beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from capfl.rng import Draw

Wholes = npt.NDArray[np.int64]
Cumulative = npt.NDArray[np.uint64]

FAR = 10  # standard deviations of the noise of all clients for which there is room beyond the longest sum
MOST = 2.0**17  # standard deviation of a client's noise: its table takes 0.9 GB then
LEAST = 3.0  # standard deviation of a client's noise: below, sums of discrete Gaussians are no longer nearly one
_FIXED = 192  # bits behind the point in which probabilities are computed
_WORD = 64


@dataclass(frozen=True)
class Grid:
    """The whole numbers that clients' changes become. It follows from what all know, and from nobody's data.

    Attributes:
        n: values of a change.
        steps: S, how many steps of the grid the clip is.
        longest: Delta^2, the square of the L2 norm that a client's numbers have at most without noise.
        variance: sigma^2, of the noise that each client adds to each number.
        clients: who may be in a sum, at most.
    """

    n: int
    steps: float
    longest: float
    variance: float
    clients: int

    @staticmethod
    def of(n: int, bits: int, noise_multiplier: float, clients: int, counted: int) -> Grid:
        """The grid for values of so many bits.

        Args:
            noise_multiplier: z, of a sum with the noise of ``counted`` clients.
        """
        steps = 2.0 ** (bits - 1) * math.sqrt(n)
        longest = steps**2 + n / 4 + steps + math.sqrt(n) / 2
        return Grid(n, steps, longest, max(LEAST**2, noise_multiplier**2 * longest / counted), clients)

    def most(self, clients: int) -> int:
        """The largest magnitude of a sum of so many clients, with noise ``FAR`` standard deviations off."""
        return clients * math.ceil(self.steps) + math.ceil(FAR * math.sqrt(clients * self.variance))

    def length(self, clients: int) -> float:
        """The L2 norm of a sum of so many clients, noise included; 10 standard deviations are allowed for its own."""
        noise = math.sqrt(clients * self.variance) * (math.sqrt(self.n) + FAR)
        return clients * math.sqrt(self.longest) + noise

    @property
    def width(self) -> int:
        """Bits in which a sum of all clients has room, on both sides of zero."""
        return (2 * self.most(self.clients)).bit_length()


def rounded(values: npt.NDArray[np.float64], longest: float, draw: Draw) -> Wholes:
    """Whole numbers beside the values (n,), up or down at random and right on average, of a square norm up to
    ``longest``: they are drawn until that holds, to the last bit.

    Raises:
        ValueError: the values are longer than that themselves.
    """
    if float(np.sum(values**2)) > longest:
        raise ValueError(f"values of square norm {np.sum(values**2):g} are to be rounded to one of {longest:g} at most")
    low = np.floor(values)
    above = values - low
    while True:
        chance = (np.frombuffer(draw(8 * len(values)), "<u8") >> np.uint64(11)) * 2.0**-53
        found: Wholes = (low + (chance < above)).astype(np.int64)
        if int(np.dot(found, found)) <= longest:
            return found


def discrete_gaussian(n: int, variance: float, draw: Draw) -> Wholes:
    r"""Numbers (n,) that are x with a probability in proportion to :math:`e^{-x^2 / 2 \sigma^2}`.

    Canonne, Kamath & Steinke, arXiv:2004.00010, definition 1. Each is the first x whose cumulative probability lies
    above 128 random bits, which are compared to the last one: no probability is wrong by more than about 2^-127.
    """
    high, low = _cumulative(variance)
    first, second = np.frombuffer(draw(16 * n), "<u8").reshape(2, n)
    place = np.searchsorted(high, first)
    while (behind := (high[place] == first) & (low[place] < second)).any():
        place += behind
    return place.astype(np.int64) - len(high) // 2


@lru_cache(maxsize=2)
def _cumulative(variance: float) -> tuple[Cumulative, Cumulative]:
    """2^128 P(X <= x) - 1 for x from -m to m, where nothing is left beyond: its upper and its lower 64 bits."""
    one, context = 1 << _FIXED, Context(prec=80)
    ratio = int(context.exp(context.divide(Decimal(-1), 2 * Decimal(variance))) * one)  # of P(1) to P(0)
    shrinks = ratio * ratio >> _FIXED
    weights = [one]
    while weights[-1] >> (_FIXED - 2 * _WORD):
        weights.append(weights[-1] * ratio >> _FIXED)
        ratio = ratio * shrinks >> _FIXED
    inverse = (1 << 2 * _FIXED) // (2 * sum(weights) - one)
    below = [w * inverse >> 2 * (_FIXED - _WORD) for w in accumulate(reversed(weights[1:]))]  # for x < 0
    all_of_it = 1 << 2 * _WORD
    found = [*below, *(all_of_it - c for c in reversed(below)), all_of_it]
    words = np.frombuffer(b"".join(max(0, c - 1).to_bytes(16, "little") for c in found), "<u8")
    return words[1::2].copy(), words[::2].copy()
