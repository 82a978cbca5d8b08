r"""Client-level differential privacy: another way to combine, with clipped changes and noise on their sum.

McMahan et al., Learning Differentially Private Recurrent Language Models, arXiv:1710.06963, with a weight of 1 for
every client:

.. math:: \theta_g \leftarrow \theta_g + \frac{1}{m} \Big( \sum_k \Delta_k \min(1, C / \lVert \Delta_k \rVert)
          + \mathcal{N}(0, z^2 C^2 I) \Big).

:math:`m` is the number of clients that are asked, whoever answers, so that one client more or less changes the sum by
no more than C. The changes are what arrives: the server clips after decoding, and is trusted. Noise is on every
element that a message of the round may have, which does not depend on anybody's data.

With secure aggregation the clients clip and add noise themselves (``methods.secure``), and nothing is done here.

What clients learn from the server is made of this sum alone, round after round; :math:`\epsilon` is of all rounds that
a client took part in (``maths.privacy``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.config.privacy import Noise, PrivacyConfig
from capfl.errors import ConfigError
from capfl.maths.privacy import epsilon, gaussian
from capfl.methods.combine import Combine, Fold
from capfl.methods.factors import Factors
from capfl.methods.method import Method
from capfl.methods.robust import refuse_other_than_mean
from capfl.methods.secure import NoisySum
from capfl.types import Adapter
from capfl.wire import Codec


def private(method: Method, config: PrivacyConfig, up: Codec, clients: int, asked: int) -> Method:
    """The method, with ``asked`` of ``clients`` in each round. ``up`` encodes their updates.

    Raises:
        ConfigError: the method sends or aggregates more than clipping and noise are enough for; the package that
            counts epsilon is not there; or delta is too large to mean anything.
    """
    noise = config.of_clients
    if noise is None:
        return method
    if noise.delta * clients >= 1:
        raise ConfigError(
            f"privacy.delta: with {noise.delta:g} one of {clients} clients could be revealed; choose less "
            "than 1 / clients"
        )
    epsilon(noise.multiplier, 1, noise.delta)  # an error now, not after a round, if it cannot be counted
    if isinstance(method.combine, NoisySum):
        return method
    refuse_other_than_mean(method, "privacy.noise_multiplier")
    return replace(method, combine=Noisy(noise, up, method.factors, asked))


@dataclass(frozen=True)
class Noisy(Combine):
    """The adapter plus the noisy mean of clipped changes.

    Args:
        up: tells which elements the messages of a round have.
        asked: clients of a round, m.
    """

    noise: Noise
    up: Codec
    factors: Factors
    asked: int
    about = "mean of clipped changes, with noise (differential privacy)"
    adds_mean = True

    def start(self, adapter: Adapter, round: int) -> Fold:
        return _Noisy(self, adapter, round)


class _Noisy:
    def __init__(self, of: Noisy, adapter: Adapter, round: int) -> None:
        self._of, self._adapter = of, adapter
        names = of.factors.sent(round, adapter)
        self._reach = of.up.reach({name: adapter[name] for name in names}, adapter, round)
        self._total = {name: torch.zeros(adapter[name].shape, dtype=torch.float64) for name in names}

    def add(self, change: Adapter, weight: float, ranks: Tensor | None = None) -> None:
        clip = self._of.noise.clip
        heard = {name: t * self._reach[name] for name, t in change.items() if name in self._reach}
        share = min(1.0, clip / max(algebra.norm(heard), clip))
        for name, t in heard.items():
            self._total[name] += share * t.double()

    def value(self) -> Adapter:
        noise = self._of.noise
        for name, marks in self._reach.items():
            self._total[name][marks] += noise.multiplier * noise.clip * gaussian(int(marks.sum()), os.urandom)
        return algebra.add(self._adapter, {name: (t / self._of.asked).float() for name, t in self._total.items()})
