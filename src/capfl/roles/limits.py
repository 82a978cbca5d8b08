"""How much an update may claim: bounds that follow from the run's config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from capfl.config.schema import TrainConfig


@dataclass(frozen=True)
class Limits:
    """What the run's config makes of a client's claims."""

    train: TrainConfig
    max_items: int | None
    max_norm: float
    described: Mapping[str, int]  # how many numbers there are in each part of a description of data

    def longest(self, n_train: int, n_elements: int, gain: float) -> float:
        """L2 norm of the longest update that is let in.

        A step of AdamW moves an element by the learning rate at most, but for gradients that come and go (Kingma & Ba,
        arXiv:1412.6980, section 2.1); so many steps, all elements in one direction, and what compression adds:
        what is scaled for what is not sent, or has waited until it was, is longer by a codec's ``gain``.
        """
        return self.longest_of(self.train.steps_of(n_train), n_elements, gain)

    def longest_of(self, steps: float, n_elements: int, gain: float) -> float:
        """The same for a number of steps."""
        return self.max_norm * self.train.learning_rate * steps * math.sqrt(n_elements) * gain
