"""Codecs: a chain of stages that says what is sent, how values are written, and how positions are.

select (all, the largest, or a random mask that both sides know) -> values (plain, ternary, or levels) -> positions.
What the stages lose is made up for in one of three ways. ``feedback`` carries it over to the next message. ``unbiased``
scales what is sent by 1 / density, so that each message is right on average and the mean over clients and rounds is
what settles it: noisier, but never late. ``length`` scales by the root of that, so that a message is as long as what it
stands for: for one that nothing is averaged with, where 1 / density would be mostly noise (docs/LOG.md, 2026-11-29).
Where ranks have an importance, each has a density of its own in proportion to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capfl import adapter as algebra
from capfl.config.schema import CodecConfig
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import positions, select
from capfl.wire.body import pack, unpack
from capfl.wire.budget import Budget, read_importance, write_importance
from capfl.wire.layout import Floats, Layout, Places
from capfl.wire.sections import Section
from capfl.wire.values import VALUES, Values

COARSE = ("ternary", "2bit", "3bit")
SCALED = ("unbiased", "length")
FIFTH = 0.2  # of ternary values, unless the config says otherwise: see docs/results/codecs.md


@dataclass(frozen=True)
class Codec:
    """How the tensors of a message are written in one direction. ``decode(encode(a))`` is what arrives of a."""

    values: Values
    density: float = 1.0
    mask: str = "top"
    compensation: str = "feedback"
    seed: int = 0

    @property
    def scales(self) -> bool:
        """Is what is sent scaled for what is not, with nothing carried over?"""
        return self.compensation in SCALED

    @property
    def gain(self) -> float:
        """By how much a message may be longer than the change that it stands for."""
        return float(self.density ** (-0.5 if self.compensation == "length" else -1.0))

    @property
    def exact(self) -> bool:
        """Does everything arrive as it was?"""
        return self.values.exact and self.density == 1.0

    def encode(
        self, adapter: Adapter, template: Adapter, number: int, importance: npt.ArrayLike | None = None
    ) -> bytes:
        """The body of a message for version 1, 2, ...: the selected elements of an adapter, or of a part of one.

        Args:
            importance: of every rank of the template, which has both factors of every module then: (n,), in the order
                of the factors A. What is sent is shared out over the ranks in proportion to it, and nothing is sent of
                a rank of importance 0. None: all elements are alike.

        Raises:
            WireError: a tensor that is not the template's, values that are not finite, or importance that is not one.
        """
        layout = Layout.of(adapter, template)
        if not layout.size:
            return pack(layout.flatten(adapter), layout.all(), self.values, layout, template)
        coded = None if importance is None else write_importance(importance, Layout.of(template, template).n_ranks)
        flat, kept, drawn = self.select(adapter, template, number, coded)
        if drawn:
            return pack(flat, kept, self.values, layout, template, False, self.scales, coded)
        return pack(flat, kept, self.values, layout, template, len(kept) < layout.size, self.scales)

    def select(
        self, adapter: Adapter, template: Adapter, number: int, coded: bytes | None = None
    ) -> tuple[Floats, Places, bool]:
        """The elements of an adapter (size,), scaled for what is left out; the positions (n,) of what is sent of them;
        and whether chance has decided on these.

        Args:
            coded: importance of the ranks, as ``wire.budget`` writes it.

        Raises:
            WireError: as ``encode``.
        """
        layout, whole = Layout.of(adapter, template), Layout.of(template, template)
        flat = layout.flatten(adapter)
        if not all(np.isfinite(flat[block.elements]).all() for block in layout.blocks()):
            bad = next(name for name, t in adapter.items() if not bool(t.isfinite().all()))
            raise WireError(f"{bad!r} has values that are not finite")
        budget = self._by_rank(coded, layout, whole)
        drawn = self._drawn(layout, whole, number, budget)
        kept = select.largest(flat, budget or Budget.by_tensor(self.density, layout)) if drawn is None else drawn
        if self.scales and np.count_nonzero(flat) > np.count_nonzero(flat[kept]):  # something is left out
            share = np.full(len(layout.rank_sizes), self.density, np.float32) if budget is None else budget.share()
            share = share if self.compensation == "unbiased" else np.sqrt(share)
            for block in layout.blocks():
                flat[block.elements] /= np.repeat(share[block.ranks], layout.rank_sizes[block.ranks])
        return flat, kept, drawn is not None

    def decode(self, body: memoryview, template: Adapter, number: int) -> Adapter:
        """What arrives: zero where nothing was sent.

        Raises:
            WireError: the body is not one of this codec, for this template.
        """
        layout, found = unpack(body, template)
        flat = np.zeros(layout.size, np.float32)  # no memory yet
        if Section.VALUES in found:
            kept = self._kept(found, layout, Layout.of(template, template), number)
            if not len(kept):
                raise WireError("body has values of no elements")
            scales = found.get(Section.SCALES, memoryview(b""))
            values = self.values.decode(scales, found[Section.VALUES], kept, layout)
            if len(kept) == layout.size:
                flat = values
            else:
                flat[kept] = values
            del kept, values
        adapter = layout.unflatten(flat)
        for name, t in adapter.items():
            if not bool(t.isfinite().all()):
                raise WireError(f"{name!r} has values that are not finite")
        return adapter

    def reach(self, part: Adapter, template: Adapter, number: int, importance: npt.ArrayLike | None = None) -> Adapter:
        """Which elements of a message for a version may be other than zero: marks (bool) by the names of ``part``.

        All, but for those on which chance has not decided, and those of ranks that get nothing. ``importance`` is of
        the ranks, as for ``encode``.
        """
        layout, whole = Layout.of(part, template), Layout.of(template, template)
        coded = None if importance is None else write_importance(importance, whole.n_ranks)
        budget = self._by_rank(coded, layout, whole)
        kept = self._drawn(layout, whole, number, budget)
        if kept is None:
            sent = True if budget is None else np.repeat((budget.counts > 0)[budget.owner], budget.lengths)
            marks = np.full(layout.size, sent)
        else:
            marks = np.zeros(layout.size, np.bool_)
            marks[kept] = True
        return layout.unflatten(marks)

    def _kept(self, found: dict[Section, memoryview], layout: Layout, whole: Layout, number: int) -> Places:
        """The positions (n,) of a body's values, by its sections."""
        if Section.POSITIONS in found:
            return positions.decode(found[Section.POSITIONS], layout.size)
        if Section.RANKS in found and self.mask != "random":
            raise WireError("body says how important ranks are, and nothing is drawn by that in this codec")
        return self.common(layout, whole, number, found.get(Section.RANKS))

    def common(self, layout: Layout, whole: Layout, number: int, coded: bytes | memoryview | None) -> Places:
        """The positions (n,) of what both sides know to be sent, without a list: what chance selects, or all."""
        drawn = self._drawn(layout, whole, number, self._by_rank(coded, layout, whole))
        return layout.all() if drawn is None else drawn

    def _by_rank(self, coded: bytes | memoryview | None, layout: Layout, whole: Layout) -> Budget | None:
        """The budget that coded importance gives; None for none."""
        if coded is None:
            return None
        return Budget.by_rank(read_importance(memoryview(coded), whole.n_ranks), self.density, layout, whole)

    def _drawn(self, layout: Layout, whole: Layout, number: int, budget: Budget | None) -> Places | None:
        """The positions (n,) of what chance selects, which both sides know. None: chance has no say."""
        if self.mask != "random" or (budget is None and self.density == 1):
            return None
        if budget is None:
            return select.drawn(number, self.density, layout, whole, self.seed)
        return select.windows(number, budget, layout, whole, self.seed)


def compensate(
    change: Adapter,
    residual: Adapter,
    codec: Codec,
    template: Adapter,
    number: int,
    importance: npt.ArrayLike | None = None,
) -> tuple[bytes, Adapter]:
    """The body that carries a change, and the new residual: what it does not carry is carried over to the next one.

    Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014; Karimireddy et al., Error Feedback Fixes SignSGD,
    arXiv:1901.09847. With e the residual, a change d goes out as C(d + e), and e becomes d + e - C(d + e), so that over
    any number of rounds what was sent and what is left sum to what changed, quantisation included. Tensors that did not
    change keep their residual.

    Raises:
        WireError: as ``Codec.encode``.
    """
    whole = {name: t + residual[name] if name in residual else t for name, t in change.items()}
    body = codec.encode(whole, template, number, importance)
    kept = residual | algebra.subtract(whole, codec.decode(memoryview(body), template, number))
    return body, {name: t for name, t in kept.items() if bool(t.any())}


# -- from a config -----------------------------------------------------------------------------------


def up_codec(config: CodecConfig, seed: int, in_turn: bool = False) -> Codec:
    """From client to server. ``seed`` draws random masks.

    Args:
        in_turn: do clients train one after the other, so that a message may go on as it came?
    """
    return _codec(config, config.values, config.density, seed, in_turn)


def down_codec(config: CodecConfig, seed: int, in_turn: bool = False) -> Codec:
    """From server to client."""
    return _codec(config, config.down_values or config.values, config.down_density or config.density, seed, in_turn)


def full_codec(config: CodecConfig, seed: int) -> Codec:
    """From a server that rewrites the adapter: all elements, with levels unless the config says how.

    One bit has no zero, and a rewritten adapter has elements that hardly change: docs/LOG.md, 2026-11-28.
    """
    values = config.down_values or ("4bit" if config.values in COARSE else config.values)
    return _codec(config, values, 1.0, seed, False)


def _codec(config: CodecConfig, values: str, density: float | None, seed: int, in_turn: bool) -> Codec:
    scaled = "length" if in_turn else "unbiased"
    return Codec(
        values=VALUES[values],
        density=density or (FIFTH if values == "ternary" else 1.0),
        mask=config.mask,
        compensation=config.compensation or (scaled if config.mask == "random" else "feedback"),
        seed=seed,
    )
