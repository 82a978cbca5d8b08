"""Changes of an adapter as whole numbers with noise, whose sum is private (``maths.discrete``).

The step of the numbers is the same of all clients and in every round, and follows from the config: a scale of a
client's own, as ``wire.summed`` has, would say something of its data. Beside the changes nothing is said, neither loss
nor steps.
"""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

from capfl.errors import WireError
from capfl.maths.discrete import MOST, Grid, discrete_gaussian, rounded
from capfl.maths.masks import Whole, kind_of
from capfl.rng import Draw
from capfl.types import Adapter
from capfl.wire.codec import Codec
from capfl.wire.summed import BITS, Mean, Summed


class Noised(Summed):
    """As ``Summed``, of clipped changes with noise.

    Args:
        clip: L2 norm of what a client sends.
        noise_multiplier: standard deviation of the noise on the sum of ``counted`` clients, in units of what one client
            can change in it: the clip, and a little more for rounding.
    """

    def __init__(
        self,
        codec: Codec,
        part: Adapter,
        template: Adapter,
        number: int,
        clients: int,
        clip: float,
        noise_multiplier: float,
        counted: int,
    ) -> None:
        super().__init__(codec, part, template, number, clients)
        self.grid = Grid.of(self.n_values, BITS[codec.values.name], noise_multiplier, clients, counted)
        self._clip = clip
        self._fit(self.grid.width)
        if (own := math.sqrt(self.grid.variance)) > MOST:
            raise WireError(
                f"privacy.noise_multiplier: each client's noise would be {own:.3g} steps, and there is memory for "
                f"{MOST:.0f}; take codec.values of fewer bits, a lower codec.density, or less noise"
            )

    @property
    def n_numbers(self) -> int:
        return 0

    def whole(
        self, change: Adapter, loss: float, steps: int, ranks: npt.ArrayLike = (), draw: Draw = os.urandom
    ) -> Whole:
        """One client's update: clipped over what travels, rounded, and with the client's share of the noise.

        Args:
            draw: of the noise, and of rounding.

        Raises:
            WireError: a value is not finite.
        """
        values = self._selected(change).astype(np.float64)
        norm = float(np.sqrt(np.sum(values**2)))
        clipped = values * (self.grid.steps / max(norm, self._clip))
        whole = rounded(clipped, self.grid.longest, draw)
        whole += discrete_gaussian(len(whole), self.grid.variance, draw)
        whole &= (1 << self.width) - 1
        return Whole(whole.astype(kind_of(self.width)), self.width, np.zeros(0, np.uint32))

    def mean(self, total: Whole, clients: int) -> Mean:
        self._require_shape(total)
        half = 1 << (self.width - 1)
        sums = total.values.astype(np.float64)
        sums -= 2 * half * (sums >= half)
        largest, most = np.abs(sums).max(initial=0.0), self.grid.most(clients)
        if largest > most:
            raise WireError(f"a sum of {clients} clients, with its noise, has {largest:g} where {most} is the most")
        norm, longest = float(np.sqrt(np.sum(sums**2))), self.grid.length(clients)
        if norm > longest:
            raise WireError(f"a sum of {clients} clients has norm {norm:.6g} where {longest:.6g} is the most")
        return Mean(self._adapter(sums * (self._clip / max(self.grid.steps, 1.0) / clients)))
