"""Which clients are alike: they see prompts of one kind, and answer them alike.

Distances of mean features are in units of the variance over a client's own items, less what would be expected of two
samples of one distribution: the squared effect size of two groups, without its bias (Hedges, Distribution theory for
Glass's estimator of effect size, J. Educ. Stat. 6(2), 1981), averaged over features. Average linkage: Sokal & Michener,
1958.

A client may lie. So each pair of clients counts for a bounded distance, what all clients have in common is a trimmed
mean, and the third of a group that is nearest cannot vouch alone for who is near.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]  # float32 where there are many clients
Ints = npt.NDArray[np.int64]

SIGNAL = 1.5  # standard errors by which clients' answers must follow their prompts, to be compared at all
NEAREST = 1 / 3  # of a group, that count as no nearer than the next
LUCK = 0.3  # of ``chance``: about one standard error of an effect size, by which peers may seem apart
TEXTS = 4.0  # by how much effect sizes of texts are divided: sites of one kind write about several things
WORDING = 1.0  # distance of two clients that write, if one repeats its phrases ten times as often


@dataclass(frozen=True)
class Clients:
    """What n clients' data are like, in common units.

    Attributes:
        prompts: mean features of their prompts, (n, d), ``scaled``.
        bound: mean features of prompts bound to answers, (n, b), ``scaled``; zeros where nothing is bound.
        items: of how many items each row is the mean, (n,), positive.
        signal: what a client's bound features have in common with themselves; None: that cannot be told.
        texts: mean features of their answers, ``scaled``, (n, d), NaN where these are no texts; None: nobody's are.
        answers: their effective number of distinct answers, (n,), 1 or more; needed with texts.
    """

    prompts: Floats
    bound: Floats
    items: Doubles
    signal: float | None
    texts: Floats | None = None
    answers: Doubles | None = None

    def apart(self, rows: Ints, others: Ints, largest: float, near: float, far: float) -> Doubles:
        """Distances (len(rows), len(others)) of clients by their numbers, from -near / 4 to ``far``.

        Prompts whose effect size is ``largest`` are ``near`` apart. Where answers can be compared, prompts and answers
        are two coordinates: half of the prompts' distance, and 1 less the agreement of the answers. An agreement says
        which share of their items two clients have in common, so clients that hold mixtures of the same data are near
        although their prompts differ somewhat. Where answers are texts, the effect size is the mean of that of prompts
        and that of answers, over ``TEXTS``. From it goes what chance may add: ``LUCK`` times ``chance``, or all of
        ``chance`` where answers are texts. How much more one client repeats its phrases than the other is a further
        coordinate, where nothing is bound. A client that writes is ``far`` from one that chooses.

        A distance may be negative by chance, so that a mean over pairs is about right. It is bounded, so that no client
        makes up for what parts others.
        """
        luck = chance(self.items[rows], self.items[others])
        prompts = effect_sizes(self.prompts[rows], self.items[rows], self.prompts[others], self.items[others])
        unlike = prompts - LUCK * luck
        mixed: npt.NDArray[np.bool_] = np.zeros(unlike.shape, bool)
        wording = np.zeros(unlike.shape)
        is_bound: npt.NDArray[np.bool_] = np.any(self.bound != 0, axis=1)
        if self.texts is not None and self.answers is not None:
            answers = effect_sizes(self.texts[rows], self.items[rows], self.texts[others], self.items[others])
            both = (prompts + answers) / 2 - luck  # texts differ in few ways, such as length, so this varies more
            unlike = np.where(np.isnan(answers), unlike, both / TEXTS)
            silent, numbers = np.isnan(self.texts[:, 0]), np.log10(self.answers)
            once = ~silent & ~is_bound  # texts that come once, whose phrases have been counted
            ratios = np.abs(numbers[rows][:, None] - numbers[others])
            wording = np.where(_both(once, rows, others), WORDING * ratios, 0)
            mixed = silent[rows][:, None] != silent[others]
        found = near / largest * unlike
        found = np.where(wording > 0, _length(found, wording), found)
        if self.signal is not None:
            disagreement = 1 - self.bound[rows] @ self.bound[others].T / self.signal
            found = np.where(_both(is_bound, rows, others), _length(found / 2, disagreement), found)
        found[mixed] = far
        bounded: Doubles = np.clip(found, -near / 4, far)
        return bounded


def _both(such: npt.NDArray[np.bool_], rows: Ints, others: Ints) -> npt.NDArray[np.bool_]:
    """Where both clients of a pair are such, (len(rows), len(others))."""
    found: npt.NDArray[np.bool_] = such[rows][:, None] & such[others]
    return found


def _length(x: Doubles, y: Doubles) -> Doubles:
    """That of vectors (x, y); of those that are negative by chance in one coordinate or both, the larger one."""
    found: Doubles = np.where((x > 0) & (y > 0), np.hypot(x, y), np.maximum(x, y))
    return found


def scaled(means: Floats, spread: Floats) -> Floats:
    """Features in units of their spread and over the root of their number, so that squares sum to a mean.

    Args:
        means: of the features of a client's items, (n, d).
        spread: standard deviation of each feature over the items of a client, (d,), positive.
    """
    found: Floats = means / (spread * len(spread) ** 0.5)
    return found


def effect_sizes(u: Floats, items: Doubles, v: Floats, others: Doubles) -> Doubles:
    """Squared effect sizes (n, m) between n clients and m: near 0 for one distribution, and negative by chance.

    Args:
        u, v: mean features, (n, d) and (m, d), ``scaled``.
        items, others: of how many items each row is the mean, (n,) and (m,), positive.
    """
    squares = (u**2).sum(1)[:, None] + (v**2).sum(1)[None, :] - 2 * u @ v.T
    found: Doubles = squares - chance(items, others)
    return found


def chance(items: Doubles, others: Doubles) -> Doubles:
    """The squared effect size (n, m) to be expected between the means of two samples of one distribution.

    Args:
        items, others: sizes of the samples, (n,) and (m,), positive.
    """
    found: Doubles = 1 / items[:, None] + 1 / others[None, :]
    return found


def signal(w: Floats, items: Doubles, answers: Doubles) -> float | None:
    """What clients' bound features have in common with themselves beyond noise; None: that cannot be told.

    Two clients that answer like prompts alike have an inner product of so much, others one near zero
    (``model.features.bound``). It is the mean over clients, without the quarter that has least and the quarter that
    has most, weighted by items up to the median. It can be told where it is ``SIGNAL`` standard errors above zero
    (Yuen, The two-sample trimmed t for unequal population variances, Biometrika 61(1), 1974).

    With states centred over n items and shares p_a of answers, noise has (1 - sum_a p_a^2) / (n - 1) variances in
    common with itself.

    Args:
        w: mean features (n, b), ``scaled``. Rows of zeros are of clients that have bound nothing, and do not count.
        items: of how many items each row is the mean, (n,), positive.
        answers: effective number of answers of each client, 1 / sum_a p_a^2, (n,).
    """
    told = np.any(w != 0, axis=1)
    items = items[told]
    own = (w[told] ** 2).sum(1) - (1 - 1 / answers[told]) / np.maximum(items - 1, 1)
    n, cut = len(own), len(own) // 4
    left = n - 2 * cut
    if left < 2:
        return None
    order = np.argsort(own, kind="stable")
    middle = order[cut : n - cut]
    found = float(np.average(own[middle], weights=np.minimum(items, np.median(items))[middle]))
    bounded = np.clip(own, own[middle[0]], own[middle[-1]])
    error = (((bounded - bounded.mean()) ** 2).sum() / (left * (left - 1))) ** 0.5
    return found if found > SIGNAL * error else None


def from_group(apart: Doubles, itself: npt.NDArray[np.bool_] | None = None) -> Doubles:
    """Mean distance (n,) of n clients to the m members of a group, of whom the nearest third counts as the next.

    The third is rounded up, and of one member it is none.

    Args:
        apart: (n, m).
        itself: (n, m), where a client is the member, which does not count. Who is the only member is at distance 0.
    """
    n, m = apart.shape
    itself = np.zeros((n, m), bool) if itself is None else itself
    ranked = np.sort(np.where(itself, -np.inf, apart), axis=1)
    is_in = itself.any(1)
    found = np.zeros(n)
    for rows, first in ((~is_in, 0), (is_in, 1)):
        others = m - first
        next = first + (ceil(others * NEAREST) if others > 1 else 0)
        if rows.any() and others:
            counted = ranked[rows]
            found[rows] = np.maximum(counted[:, first:], counted[:, next, None]).mean(1)
    return found


def clusters(apart: Doubles, largest: float) -> Ints:
    """Labels 0, 1, ... (n,) of clusters whose mean distance is at most ``largest``, numbered as they first appear.

    Args:
        apart: distances (n, n). They may be negative: then the mean over pairs is still right.
    """
    if len(apart) < 2:
        return np.zeros(len(apart), np.int64)
    pairs = squareform(apart, checks=False)
    least = min(0.0, float(pairs.min()))
    raw = fcluster(linkage(pairs - least, "average"), largest - least, "distance")
    _, first, labels = np.unique(raw, return_index=True, return_inverse=True)
    found: Ints = np.argsort(np.argsort(first))[labels]
    return found


def merged(apart: Doubles, groups: Sequence[Sequence[int]], limit: Callable[[int], float]) -> list[list[int]]:
    """Which groups become one, because they are near on the whole: their numbers, the nearest first.

    Two groups are as far apart as their pairs are on average, of which the nearest third counts as the next. So a few
    members that stand between them, or claim to, do not bring them together.

    Args:
        apart: distances (n, n) of clients.
        groups: rows of ``apart`` of each, at least one.
        limit: largest distance of groups that become one, by the number of pairs between them. Two clients that are
            both alone stay so.
    """
    rows = [list(group) for group in groups]
    found = {i: [i] for i in range(len(rows))}

    def beyond(i: int, j: int) -> float:
        """By how much two groups are too far apart."""
        pairs = apart[np.ix_(rows[i], rows[j])].ravel()
        most = limit(len(pairs))
        far = float(pairs.mean())
        return (far if far > most else float(from_group(pairs[None])[0])) - most

    near = {(i, j): beyond(i, j) for j in found for i in range(j) if len(rows[i]) + len(rows[j]) > 2}
    while near and min(near.values()) <= 0:
        i, j = min(near, key=lambda pair: (near[pair], pair))
        rows[i] += rows[j]
        found[i] += found.pop(j)
        near = {pair: own for pair, own in near.items() if j not in pair}
        near |= {(min(i, k), max(i, k)): beyond(i, k) for k in found if k != i}
    return list(found.values())
