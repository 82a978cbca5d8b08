"""Differential privacy of a client's items: for which methods steps with noise are enough, and what they come to.

The gradients of all of a client's steps have noise (``model.items``). So whatever is made of its training items by
way of its adapters is private: updates, posteriors, groups' and personal adapters, and all scores of these. A method
is refused here if its clients say anything else of their items.
"""

from __future__ import annotations

from collections.abc import Mapping

from capfl.config.privacy import Noise, PrivacyConfig
from capfl.config.schema import TrainConfig
from capfl.errors import ConfigError
from capfl.maths.privacy import epsilon
from capfl.methods.method import Method
from capfl.methods.robust import MEANS
from capfl.methods.take_home import AfterSteps, NearServer
from capfl.types import ClientId


def refuse_unprotected(method: Method, privacy: PrivacyConfig, key: str) -> None:
    """See that noise in clients' steps is enough for a method, where the config asks for it.

    Args:
        key: what names the method in the config.

    Raises:
        ConfigError: it says more of items than adapters do, or the package that counts epsilon is not there.
    """
    noise = privacy.of_items
    if noise is None:
        return
    if method.pooled:
        raise ConfigError(
            f"{key}: {method.name} puts all data in one place, and privacy.protects = items keeps them at "
            "their sites; leave one of the two out"
        )
    if method.grouping.describes:
        raise ConfigError(
            f"{key}: clients of {method.name} say what their data are like, without noise, and privacy.protects = "
            'items has it in steps alone; say yourself who learns with whom, as in method.peers = {north = "a", '
            f'south = "a"}}, or use {MEANS}'
        )
    epsilon(noise.multiplier, 1, noise.delta)  # an error now, not after a round, if it cannot be counted


def trainings(method: Method, visits: int, ends: int = 0) -> int:
    """How many times a client takes the steps of a round.

    Args:
        visits: how often it was asked to train.
        ends: how often it was asked for its personal model.
    """
    takes = method.takes_home
    return (2 if isinstance(takes, NearServer) else 1) * visits + isinstance(takes, AfterSteps) * ends


def epsilon_of_items(
    noise: Noise, train: TrainConfig, taken: Mapping[ClientId, int], sizes: Mapping[ClientId, int]
) -> float | None:
    """The largest epsilon of all clients' items; None: somebody's number of items is not known.

    Args:
        taken: how many times each client has taken the steps of a round.
        sizes: training items of each.
    """
    if not taken.keys() <= sizes.keys():
        return None
    found = {(times * train.steps_of(sizes[client]), train.share_of(sizes[client])) for client, times in taken.items()}
    return max((epsilon(noise.multiplier, steps, noise.delta, share) for steps, share in found), default=0.0)
