"""Codecs: a chain of stages that says what is sent, how values are written, and how positions are.

select (all, the largest, or a random mask that both sides know) -> values (plain, ternary, or levels) -> positions.
What the stages lose is made up for in one of two ways. ``feedback`` carries it over to the next message. ``unbiased``
scales what is sent, so that each message is right on average and the mean over clients and rounds is what settles it:
noisier, but never late.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import select
from capfl.wire.body import pack, unpack
from capfl.wire.layout import Floats, Ints, Layout
from capfl.wire.values import Values


@dataclass(frozen=True)
class Codec:
    """How the tensors of a message are written in one direction. ``decode(encode(a))`` is what arrives of a."""

    values: Values
    density: float = 1.0
    mask: str = "top"
    scope: str = "tensor"
    compensation: str = "feedback"
    warmup_rounds: int = 0
    warmup_density: float = 1.0
    seed: int = 0

    @property
    def unbiased(self) -> bool:
        """Is every message right on average, with nothing carried over?"""
        return self.compensation == "unbiased"

    @property
    def exact(self) -> bool:
        """Does everything arrive as it was?"""
        return self.values.exact and self.density == 1.0

    def density_in(self, round: int) -> float:
        """Share of the elements that is sent in a round: from ``warmup_density`` down to ``density``, geometrically.

        Lin et al., Deep Gradient Compression, arXiv:1712.01887, section 3.3.
        """
        if round > self.warmup_rounds or self.density >= self.warmup_density:
            return self.density
        return float(self.warmup_density * (self.density / self.warmup_density) ** ((round - 1) / self.warmup_rounds))

    def encode(self, adapter: Adapter, template: Adapter, round: int) -> bytes:
        """The body of a message in a round (1, 2, ...): the selected elements of an adapter, or of a part of one.

        Raises:
            WireError: a tensor that is not the template's, or values that are not finite.
        """
        layout = Layout.of(adapter, template)
        flat = layout.flatten(adapter)
        if not np.isfinite(flat).all():
            bad = next(name for name, t in adapter.items() if not bool(t.isfinite().all()))
            raise WireError(f"{bad!r} has values that are not finite")
        kept = self._select(flat, layout, template, round)
        told = len(kept) < layout.size and not self._draws(round)
        if self.unbiased and np.count_nonzero(flat) > np.count_nonzero(flat[kept]):  # something is left out
            flat = flat / np.float32(self.density_in(round))
        return pack(flat, kept, told, self.values, layout, template, self.unbiased)

    def decode(self, body: memoryview, template: Adapter, round: int) -> Adapter:
        """What arrives: zero where nothing was sent.

        Raises:
            WireError: the body is not one of this codec, for this template.
        """
        layout, kept, values = unpack(body, self.values, template, lambda layout: self._known(layout, template, round))
        flat = np.zeros(layout.size, np.float32)
        flat[kept] = values
        return layout.unflatten(flat)

    def _select(self, flat: Floats, layout: Layout, template: Adapter, round: int) -> Ints:
        if self._draws(round):
            return self._known(layout, template, round)
        choose = select.top_of_all if self.scope == "global" else select.top_of_each
        return choose(flat, self.density_in(round), layout)

    def _known(self, layout: Layout, template: Adapter, round: int) -> Ints:
        """The positions of a message that does not tell them."""
        if not self._draws(round):
            return np.arange(layout.size)
        return select.drawn(round, self.density_in(round), layout, Layout.of(template, template), self.seed)

    def _draws(self, round: int) -> bool:
        """Is it by chance what is sent in a round, or are all that are not zero?"""
        return self.mask == "random" and self.density_in(round) < 1
