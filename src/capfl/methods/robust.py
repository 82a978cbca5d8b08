r"""Robust aggregation: any method with another mean, which a minority of its clients cannot drag along.

``clip`` shortens each change to the round's median length, and counts no client for more items than the median one
has; what the method then does with the changes stays its own. Norm clipping: Sun et al., Can You Really Backdoor
Federated Learning?, arXiv:1911.07963.

``median`` and ``trimmed`` take the place of the mean of changes: of every coordinate the middle value, or the mean of
those that are left when a share of the lowest and of the highest is taken away. Yin et al., Byzantine-Robust
Distributed Learning: Towards Optimal Statistical Rates, arXiv:1803.01498. All clients count alike: how many items
a client has is its own claim.

All updates of a round are in the server's memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

import torch

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.errors import ConfigError
from capfl.methods.base import Method
from capfl.methods.fedit import add_mean_change
from capfl.types import Adapter, ServerState, Update
from capfl.wire import Codec


def robust(method: Method, config: FederationConfig, up: Codec) -> Method:
    """The method, aggregating as ``config.robust`` says. ``up`` is the codec of its updates.

    Raises:
        ConfigError: there is nothing that this would mean for the method, or with the codec; says why.
    """
    if config.robust == "none":
        return method
    if config.robust == "clip":
        refuse_no_mean(method, "federation.robust")
        return replace(method, exact=None, aggregate=lambda server, updates: method.aggregate(
            server, clipped(list(updates), config.robust_clip)
        ))  # fmt: skip
    refuse_other_than_mean(method, f"federation.robust = {config.robust}", f"federation.robust = clip, or {MEANS}")
    if up.mask == "top" and up.density < 1:
        raise ConfigError(
            f"federation.robust = {config.robust}: with codec.mask = top every client sends other elements, and the "
            "middle of values that are mostly not there is zero; use codec.mask = random, or codec.density = 1"
        )
    trim = config.robust_trim if config.robust == "trimmed" else 0.5

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        change = middle([update.adapter for update in updates], trim)
        return replace(server, adapter=algebra.add(server.adapter, change))

    return replace(method, exact=None, aggregate=aggregate)


def clipped(updates: Sequence[Update], most: float) -> list[Update]:
    """The updates, none longer or of more items than ``most`` times the median."""
    norms = [algebra.norm(update.adapter) for update in updates]
    longest, items = most * median(norms), max(1, round(most * median(update.n_train for update in updates)))
    return [
        replace(
            update,
            adapter=update.adapter if norm <= longest else algebra.scaled(update.adapter, longest / norm),
            n_train=min(update.n_train, items),
        )
        for update, norm in zip(updates, norms, strict=True)
    ]


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
    """Raises ConfigError: the server makes no mean of clients' changes that anybody is told."""
    if method.pooled:
        raise ConfigError(f"{key}: {method.name} trains one model on all data in one place; leave it out")
    if method.travels == "nothing":
        raise ConfigError(f"{key}: with {method.name} clients send nothing that it would be about; leave it out")
    if method.relay:
        raise ConfigError(
            f"{key}: with {method.name} every client gets the others' updates as they came and averages them itself, "
            f"which nothing that the server does can change; leave it out, or use {MEANS}"
        )


def refuse_other_than_mean(method: Method, key: str, instead: str = MEANS) -> None:
    """Raises ConfigError: the method's server does not just add the mean of its clients' changes."""
    refuse_no_mean(method, key)
    if method.report:
        raise ConfigError(
            f"{key}: clients of {method.name} say more than their changes, and the server makes more of them than one "
            f"mean; use {instead}"
        )
    if method.aggregate is not add_mean_change:
        raise ConfigError(
            f"{key}: the server of {method.name} does more with changes than to add their mean, which is all that this "
            f"could take the place of; use {instead}"
        )
