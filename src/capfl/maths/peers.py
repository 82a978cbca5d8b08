"""Which clients are alike: they see prompts of one kind, and answer them alike.

Distances of mean features are in units of the variance over a client's own items, less what would be expected of two
samples of one distribution: the squared effect size of two groups, without its bias (Hedges, Distribution theory for
Glass's estimator of effect size, J. Educ. Stat. 6(2), 1981), averaged over features. Average linkage: Sokal & Michener,
1958.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OUTLYING = 10.0  # times the median: no client's answers count for more than that
SIGNAL = 1.5  # standard errors by which clients' answers must follow their prompts, to be compared at all


def effect_sizes(means: Doubles, spread: Doubles, items: Doubles) -> Doubles:
    """Squared effect sizes (n, n) between n clients: near 0 for one distribution, and negative by chance.

    Args:
        means: of the features of a client's items, (n, d).
        spread: standard deviation of each feature over the items of a client, (d,), positive.
        items: (n,), of how many items each row is the mean, positive.
    """
    u = _scaled(means, spread)
    squares = (u**2).sum(1)
    found: Doubles = squares[:, None] + squares[None, :] - 2 * u @ u.T - (1 / items[:, None] + 1 / items[None, :])
    np.fill_diagonal(found, 0.0)
    return found


def agreement(means: Doubles, spread: Doubles, items: Doubles, answers: Doubles) -> Doubles:
    """How alike clients answer like prompts, (n, n): about 1 alike, 0 or less by other rules or to other prompts.

    Inner products of mean features whose expectation is zero for unrelated clients (``model.features.bound``), over the
    mean of a client's with itself, less what noise has in common with itself: with states centred over a client's n
    items and shares p_a of answers, (1 - sum_a p_a^2) / (n - 1) variances. Where the mean is not ``SIGNAL`` standard
    errors above zero, nothing can be told: 1 for all.

    Args:
        means, spread, items: as for ``effect_sizes``.
        answers: effective number of answers of each client, 1 / sum_a p_a^2, (n,).
    """
    w = _scaled(means, spread)
    products = w @ w.T
    own = np.diag(products) - (1 - 1 / answers) / np.maximum(items - 1, 1)
    if (middle := np.median(own)) > 0:  # one client that lies must not hide what the others have in common
        own = np.minimum(own, OUTLYING * middle)
    signal = np.average(own, weights=items)
    error = own.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else np.inf
    if not signal > SIGNAL * error:
        return np.ones_like(products)
    found: Doubles = products / signal
    np.fill_diagonal(found, 1.0)
    return found


def clusters(apart: Doubles, largest: float) -> Ints:
    """Labels 0, 1, ... (n,) of clusters whose mean distance is at most ``largest``, numbered as they first appear.

    Distances (n, n) may be negative: then the mean over pairs is still right.
    """
    if len(apart) < 2:
        return np.zeros(len(apart), np.int64)
    pairs = squareform(apart, checks=False)
    least = min(0.0, float(pairs.min()))
    raw = fcluster(linkage(pairs - least, "average"), largest - least, "distance")
    _, first, labels = np.unique(raw, return_index=True, return_inverse=True)
    found: Ints = np.argsort(np.argsort(first))[labels]
    return found


def _scaled(means: Doubles, spread: Doubles) -> Doubles:
    """Features in units of their spread and over the root of their number, so that squares sum to a mean."""
    scaled: Doubles = means / spread / len(spread) ** 0.5
    return scaled
