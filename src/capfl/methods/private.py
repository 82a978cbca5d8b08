r"""Client-level differential privacy: any method that averages changes, with clipped changes and noise on their sum.

McMahan et al., Learning Differentially Private Recurrent Language Models, arXiv:1710.06963, with a weight of 1 for
every client:

.. math:: \theta_g \leftarrow \theta_g + \frac{1}{m} \Big( \sum_k \Delta_k \min(1, C / \lVert \Delta_k \rVert)
          + \mathcal{N}(0, z^2 C^2 I) \Big).

:math:`m` is the number of clients that are asked, whoever answers, so that one client more or less changes the sum by
no more than C. The changes are what arrives: the server clips after decoding, and is trusted. Noise is on every
element that a message of the round may have, which does not depend on anybody's data.

What clients learn from the server is made of this sum alone, round after round; :math:`\epsilon` is of all rounds that
a client took part in (``maths.privacy``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from capfl import adapter as algebra
from capfl.config.schema import PrivacyConfig
from capfl.errors import ConfigError
from capfl.maths.privacy import epsilon, gaussian
from capfl.methods.base import Method
from capfl.methods.robust import refuse_other_than_mean
from capfl.rng import stream
from capfl.types import Adapter, ServerState, Update
from capfl.wire import Codec


def private(method: Method, config: PrivacyConfig, up: Codec, initial: Adapter, clients: int, asked: int) -> Method:
    """The method, with ``asked`` of ``clients`` in each round. ``up`` encodes updates, ``initial`` is their template.

    Raises:
        ConfigError: the method sends or aggregates more than clipping and noise are enough for; the package that
            counts epsilon is not there; or delta is too large to mean anything.
    """
    if config.clip is None or config.noise_multiplier is None:
        return method
    if config.delta * clients >= 1:
        raise ConfigError(
            f"privacy.delta: {config.delta:g} lets one of {clients} clients be given away; choose less than 1 / clients"
        )
    refuse_other_than_mean(method, "privacy.noise_multiplier")
    clip, noise, delta = config.clip, config.noise_multiplier, config.delta
    epsilon(noise, 1, delta)  # says now, not after a round, that it cannot be counted

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        round = server.round + 1
        sent = {name: t for name, t in method.broadcast(server).items() if method.trainable(round, name)}
        reach = up.reach(sent, initial, round)
        total = {name: torch.zeros(t.shape, dtype=torch.float64) for name, t in sent.items()}
        for update in updates:
            heard = {name: t * reach[name] for name, t in update.adapter.items() if name in reach}
            share = min(1.0, clip / max(algebra.norm(heard), clip))
            for name, t in heard.items():
                total[name] += share * t.double()
        draw = _bits(config.seed, round)
        for name, marks in reach.items():
            total[name][marks] += noise * clip * gaussian(int(marks.sum()), draw)
        return replace(server, adapter=algebra.add(server.adapter, {n: (t / asked).float() for n, t in total.items()}))

    return replace(method, exact=None, aggregate=aggregate, epsilon=lambda rounds: epsilon(noise, rounds, delta))


def _bits(seed: int | None, round: int) -> Callable[[int], bytes]:
    """Random bytes: the operating system's, made for secrets, or those of a seed."""
    return os.urandom if seed is None else stream(seed, "privacy", round).bytes
