"""What a comparison says about its runs: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from capfl.rng import stream

Z95 = 1.96
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


@dataclass(frozen=True)
class Point:
    """One validation on the way: what was spent when it was reached."""

    round: int
    bytes: float  # for each client, both directions, from the start
    accuracy: float  # of the global model, over all clients' validation items


def bootstrap(differences: Sequence[NDArray[np.float64]], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Two-level percentile bootstrap: seeds are drawn with replacement, then clients within each seed drawn.

    ``differences[s]`` has one paired difference for each client of seed s, (n_clients,) float64. The statistic is the
    mean over seeds of the mean over clients. With one seed, only clients are drawn. (Davison and Hinkley, Bootstrap
    Methods and their Application, 1997, section 3.8.)

    Raises:
        ValueError: there is no seed, or a seed without clients.
    """
    if not differences or any(len(values) == 0 for values in differences):
        raise ValueError("a bootstrap needs at least one seed, and a client in each")
    generator = stream(seed, "bootstrap")
    chosen = generator.integers(len(differences), size=(draws, len(differences)))
    totals = np.zeros(draws)
    for s, values in enumerate(differences):
        times = (chosen == s).sum(axis=1)
        clients = generator.integers(len(values), size=(int(times.sum()), len(values)))
        np.add.at(totals, np.repeat(np.arange(draws), times), values[clients].mean(axis=1))
    low, high = np.quantile(totals / len(differences), [0.025, 0.975])
    return Interval(float(np.mean([values.mean() for values in differences])), float(low), float(high))


def clearly_worse(mine: float, alone: float, n_test: int) -> bool:
    """Lower by more than 1.96 standard errors of a difference of two accuracies on ``n_test`` items each."""
    error = math.sqrt((mine * (1 - mine) + alone * (1 - alone)) / n_test)
    return alone - mine > Z95 * error


def bytes_to(curve: Sequence[Point], target: float) -> float | None:
    """Bytes spent when the validation accuracy first reached the target, or None if it never did."""
    return next((point.bytes for point in curve if point.accuracy >= target), None)


def accuracy_within(curve: Sequence[Point], budget: float) -> float | None:
    """The last validation accuracy that these bytes paid for, or None if they did not last until the first."""
    return next((point.accuracy for point in reversed(curve) if point.bytes <= budget), None)
