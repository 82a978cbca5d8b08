"""What a comparison says about its runs: pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capfl.rng import stream

DRAWS = 10_000
ROUNDING = 1e-9  # of sums of accuracies: far below one test item


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % interval around it."""

    mean: float
    low: float
    high: float

    @property
    def crosses_zero(self) -> bool:
        """Then the data do not tell which of the two is better."""
        return self.low <= ROUNDING and self.high >= -ROUNDING


def bootstrap(differences: Sequence[NDArray[np.float64]], draws: int = DRAWS) -> Interval:
    """Two-level percentile bootstrap: seeds are drawn with replacement, then clients within each seed drawn.

    ``differences[s]`` has one paired difference for each client of seed s, (n_clients,) float64. The statistic is the
    mean over seeds of the mean over clients. With one seed, only clients are drawn. (Davison and Hinkley, Bootstrap
    Methods and their Application, 1997, section 3.8.)

    Raises:
        ValueError: there is no seed, or a seed without clients.
    """
    if not differences or any(len(values) == 0 for values in differences):
        raise ValueError("a bootstrap needs at least one seed, and a client in each")
    generator = stream(0, "bootstrap")
    chosen = generator.integers(len(differences), size=(draws, len(differences)))
    totals = np.zeros(draws)
    for s, values in enumerate(differences):
        times = (chosen == s).sum(axis=1)
        clients = generator.integers(len(values), size=(int(times.sum()), len(values)))
        np.add.at(totals, np.repeat(np.arange(draws), times), values[clients].mean(axis=1))
    low, high = np.quantile(totals / len(differences), [0.025, 0.975])
    return Interval(float(np.mean([values.mean() for values in differences])), float(low), float(high))
