r"""Robust aggregation: other ways to combine, which a minority of clients cannot drag along.

``Clipped`` shortens each change to the round's median length, and counts no client for more items than the median one
has; what is then done with the changes stays the method's own. Norm clipping: Sun et al., Can You Really Backdoor
Federated Learning?, arXiv:1911.07963.

``Middle`` takes of every coordinate the middle value, or the mean of those that are left when a share of the lowest and
of the highest is taken away. Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates,
arXiv:1803.01498. All clients count alike: how many items a client has is its own claim.

All updates of a round are in the server's memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.errors import ConfigError
from capfl.methods.combine import Combine, Fold, WeightedMean
from capfl.methods.grouping import Everybody
from capfl.methods.method import Method
from capfl.methods.ranks import AllRanks
from capfl.types import Adapter
from capfl.wire import Codec

TRIM = 0.25  # of a trimmed mean: share of the values that is left out at either end


def robust(method: Method, config: FederationConfig, up: Codec) -> Method:
    """The method, combining as ``config.robust`` says. ``up`` is the codec of its updates.

    Raises:
        ConfigError: there is nothing that this would mean for the method, or with the codec; says why.
    """
    if config.robust == "none":
        return method
    if config.robust == "clip":
        refuse_no_mean(method, "federation.robust")
        return replace(method, combine=Clipped(method.combine))
    refuse_other_than_mean(method, f"federation.robust = {config.robust}", f"federation.robust = clip, or {MEANS}")
    if up.mask == "top" and up.density < 1:
        raise ConfigError(
            f"federation.robust = {config.robust}: with codec.mask = top every client sends different "
            "elements, so most values are missing and their median is zero; use codec.mask = random, or "
            "codec.density = 1"
        )
    return replace(method, combine=Middle(TRIM if config.robust == "trimmed" else 0.5))


class Clipped(Combine):
    """Another way to combine, of updates that are none longer or of more items than the median one."""

    def __init__(self, inner: Combine) -> None:
        self._inner = inner
        self.about = f"changes clipped to the median length, then {inner.about}"
        self.adds_mean, self.rewrites = inner.adds_mean, inner.rewrites

    def first(self, initial: Adapter) -> Adapter:
        return self._inner.first(initial)

    def start(self, adapter: Adapter, round: int) -> Fold:
        return _Clipping(self._inner.start(adapter, round))


class _Clipping:
    def __init__(self, inner: Fold) -> None:
        self._inner = inner
        self._waiting: list[tuple[Adapter, float, Tensor | None]] = []

    def add(self, change: Adapter, weight: float, ranks: Tensor | None = None) -> None:
        self._waiting.append((change, weight, ranks))

    def value(self) -> Adapter:
        if self._waiting:
            norms = [algebra.norm(change) for change, _, _ in self._waiting]
            longest = median(norms)
            heaviest = max(1, round(median(weight for _, weight, _ in self._waiting)))
            for (change, weight, ranks), norm in zip(self._waiting, norms, strict=True):
                shorter = change if norm <= longest else algebra.scaled(change, longest / norm)
                self._inner.add(shorter, min(weight, heaviest), ranks)
            self._waiting = []
        return self._inner.value()


@dataclass(frozen=True)
class Middle(Combine):
    """The adapter plus the middle of the changes, coordinate by coordinate. ``trim``: share left out at either end."""

    trim: float
    about = "median or trimmed mean of every value"
    adds_mean = True

    def start(self, adapter: Adapter, round: int) -> Fold:
        return _Middle(adapter, self.trim)


class _Middle:
    def __init__(self, adapter: Adapter, trim: float) -> None:
        self._adapter, self._trim = adapter, trim
        self._changes: list[Adapter] = []

    def add(self, change: Adapter, weight: float, ranks: Tensor | None = None) -> None:
        self._changes.append(change)

    def value(self) -> Adapter:
        return algebra.add(self._adapter, middle(self._changes, self._trim)) if self._changes else self._adapter


def middle(changes: Sequence[Adapter], trim: float) -> Adapter:
    """The mean of every coordinate without its lowest and highest values; a name that a change lacks counts as zero.

    Args:
        trim: share of the changes that is left out at either end, rounded up, but for the middle one or two.

    Raises:
        ValueError: no changes.
    """
    if not changes:
        raise ValueError("there is no middle of no changes")
    n = len(changes)
    cut = min(math.ceil(trim * n - 1e-9), (n - 1) // 2)  # 0.2 * 15 is a little more than 3
    like = {name: t for change in changes for name, t in change.items()}
    return {
        name: torch.stack([change.get(name, torch.zeros_like(t)) for change in changes])
        .sort(dim=0).values[cut : n - cut].double().mean(dim=0).float()
        for name, t in like.items()
    }  # fmt: skip


# -- what is refused --------------------------------------------------------------------------------

MEANS = "fedit, ffa-lora or another method that averages changes"


def refuse_no_mean(method: Method, key: str) -> None:
    """Raises ConfigError: the server makes no mean of clients' changes that it sends to anybody."""
    if method.pooled:
        raise ConfigError(f"{key}: {method.name} trains one model on all data in one place; leave it out")
    if not method.factors.travel:
        raise ConfigError(f"{key}: with {method.name} clients send nothing, so it has no effect; leave it out")
    if method.order.turns > 1:
        raise ConfigError(
            f"{key}: the clients of {method.name} train in {method.order.turns} turns, and an update may "
            "be the only one of its turn: no others to compare it with or to hide it among; leave it "
            "out, or set method.turns to 1"
        )
    if isinstance(method.combine, WeightedMean) and method.combine.step != 1:
        raise ConfigError(
            f"{key}: it replaces the mean of {method.name}, so method.server_step = "
            f"{method.combine.step:g} would have no effect; leave it out, or leave out method.server_step"
        )
    if method.combine.relays:
        raise ConfigError(
            f"{key}: with {method.name} every client gets the others' updates and averages them itself, "
            f"so the server cannot change their mean; leave it out, or use {MEANS}"
        )


def refuse_other_than_mean(method: Method, key: str, instead: str = MEANS) -> None:
    """Raises ConfigError: the method's server does not just add the mean of its clients' changes."""
    refuse_no_mean(method, key)
    if not (isinstance(method.grouping, Everybody) and isinstance(method.ranks, AllRanks)):
        raise ConfigError(
            f"{key}: clients of {method.name} send more than their changes, and the server does more than "
            f"average them; use {instead}"
        )
    refuse_no_plain_mean(method, key, instead)


def refuse_no_plain_mean(method: Method, key: str, instead: str = MEANS) -> None:
    """Raises ConfigError: the server makes more of changes than their mean."""
    if not method.combine.adds_mean:
        raise ConfigError(
            f"{key}: the server of {method.name} does more than add a mean of changes, and this can only "
            f"replace a mean; use {instead}"
        )
