"""Codecs: a chain of stages that says what is sent, how values are written, and how positions are.

select (all, the largest, or a random mask that both sides know) -> values (plain, ternary, or levels) -> positions.
What the stages lose is made up for in one of two ways. ``feedback`` carries it over to the next message. ``unbiased``
scales what is sent, so that each message is right on average and the mean over clients and rounds is what settles it:
noisier, but never late. Where ranks have an importance, each has a density of its own in proportion to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import ranks, select
from capfl.wire.body import pack, unpack
from capfl.wire.layout import Bools, Floats, Ints, Layout
from capfl.wire.scales import Doubles
from capfl.wire.values import Values


@dataclass(frozen=True)
class Codec:
    """How the tensors of a message are written in one direction. ``decode(encode(a))`` is what arrives of a."""

    values: Values
    density: float = 1.0
    mask: str = "top"
    compensation: str = "feedback"
    seed: int = 0

    @property
    def unbiased(self) -> bool:
        """Is every message right on average, with nothing carried over?"""
        return self.compensation == "unbiased"

    @property
    def exact(self) -> bool:
        """Does everything arrive as it was?"""
        return self.values.exact and self.density == 1.0

    def encode(
        self,
        adapter: Adapter,
        template: Adapter,
        round: int,
        importance: Doubles | None = None,
        alive: Bools | None = None,
    ) -> bytes:
        """The body of a message in a round (1, 2, ...): the selected elements of an adapter, or of a part of one.

        Args:
            importance: of every rank of the template's complete pairs, (n,) float64, in their order. What is sent is
                shared out over the ranks in proportion to it, and nothing is sent of a rank of importance 0. None:
                all elements are alike.
            alive: which of these ranks the sender has, (n,). The others keep their share of the budget, unspent, so
                that those who have them and those who do not send the same elements of the rest.

        Raises:
            WireError: a tensor that is not the template's, values that are not finite, or importance that is not one.
        """
        layout, whole = Layout.of(adapter, template), Layout.of(template, template)
        flat = layout.flatten(adapter)
        if not np.isfinite(flat).all():
            bad = next(name for name, t in adapter.items() if not bool(t.isfinite().all()))
            raise WireError(f"{bad!r} has values that are not finite")
        if importance is not None:
            return self._encode_by_rank(flat, layout, whole, template, round, importance, alive)
        kept = self._implied(layout, whole, round) if self._draws else select.top_of_each(flat, self.density, layout)
        with_positions = len(kept) < layout.size and not self._draws
        if self.unbiased and np.count_nonzero(flat) > np.count_nonzero(flat[kept]):  # something is left out
            flat = flat / np.float32(self.density)
        return pack(flat, kept, with_positions, self.values, layout, template, self.unbiased)

    def decode(self, body: memoryview, template: Adapter, round: int) -> Adapter:
        """What arrives: zero where nothing was sent.

        Raises:
            WireError: the body is not one of this codec, for this template.
        """
        whole = Layout.of(template, template)
        layout, kept, values = unpack(
            body, self.values, template, lambda layout, *sections: self._implied(layout, whole, round, *sections)
        )
        flat = np.zeros(layout.size, np.float32)
        flat[kept] = values
        return layout.unflatten(flat)

    def reach(self, part: Adapter, template: Adapter, round: int, importance: Doubles | None = None) -> Adapter:
        """Which elements of a message of a round may be other than zero: marks (bool) by the names of ``part``.

        All, unless chance decides what is sent. ``importance`` is of the ranks, as for ``encode``.
        """
        layout, whole = Layout.of(part, template), Layout.of(template, template)
        kept = np.arange(layout.size)
        if self.mask == "random":
            coded = None if importance is None else memoryview(ranks.encode(importance, whole))
            kept = self._implied(layout, whole, round, coded)
        marks = np.zeros(layout.size, np.float32)
        marks[kept] = 1
        return {name: t.bool() for name, t in layout.unflatten(marks).items()}

    def _encode_by_rank(
        self,
        flat: Floats,
        layout: Layout,
        whole: Layout,
        template: Adapter,
        round: int,
        importance: Doubles,
        alive: Bools | None,
    ) -> bytes:
        coded = ranks.encode(importance, whole)
        counts = ranks.share_out(ranks.decode(memoryview(coded), whole), self.density, layout, whole)
        own, living = ranks.Ranks.of(layout, whole), ranks.checked(alive, whole)
        if self.mask == "random":
            kept = select.windows(round, counts, layout, whole, self.seed)
            kept = kept[living[own.owner[kept]]]
        else:
            kept = select.top_of_ranks(flat, counts * living, own)
        left_out = (flat != 0) & (living & (counts > 0))[own.owner]  # a dropped rank is not left to other rounds
        left_out[kept] = False
        if self.unbiased and left_out.any():
            share = np.where(counts > 0, counts / np.maximum(own.sizes, 1), 1.0).astype(np.float32)
            flat = flat / share[own.owner]
        if self.mask == "random":
            marks = b"" if living.all() else np.packbits(living).tobytes()
            return pack(flat, kept, False, self.values, layout, template, self.unbiased, coded, marks)
        return pack(flat, kept, len(kept) < layout.size, self.values, layout, template, self.unbiased)

    def _implied(
        self,
        layout: Layout,
        whole: Layout,
        round: int,
        importance: memoryview | None = None,
        alive: memoryview | None = None,
    ) -> Ints:
        """The positions (n,) of a message that does not list them. ``importance``, ``alive``: its sections, if any."""
        if importance is not None:
            if self.mask != "random":
                raise WireError("body says how important ranks are, and nothing is drawn by that in this codec")
            counts = ranks.share_out(ranks.decode(importance, whole), self.density, layout, whole)
            kept = select.windows(round, counts, layout, whole, self.seed)
            if alive is None:
                return kept
            return kept[ranks.decode_alive(alive, whole)[ranks.Ranks.of(layout, whole).owner[kept]]]
        if not self._draws:
            return np.arange(layout.size)
        return select.drawn(round, self.density, layout, whole, self.seed)

    @property
    def _draws(self) -> bool:
        """Does chance decide which elements are sent, where ranks have no importance?"""
        return self.mask == "random" and self.density < 1
