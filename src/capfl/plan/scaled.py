"""What messages of a large adapter take, from those of a few of its modules.

What a message is made of grows with one of two things. Headers, scales and records grow with the number of modules: two
adapters of different length say how much each adds, whatever else they have. Values, and positions that are listed,
grow with the number of elements. These and scales have next to nothing beside. Where chance decides which elements are
sent, the few that were measured are corrected to as many as there are in the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from capfl import adapter as algebra
from capfl.plan.messages import PARTS, Client, Measured, Parts
from capfl.roles.agreement import Agreement
from capfl.types import Adapter
from capfl.wire import Codec

LARGE = 100_000  # elements: smaller adapters are measured as they are


def scaled(agreement: Agreement, simulate: Callable[[Agreement], Measured]) -> Measured:
    """The messages of an agreement, whose initial adapter is drawn here: of the one that is given, shapes count alone.

    Args:
        simulate: measures the messages of an agreement, for the same clients each time.
    """
    whole = agreement.initial
    modules = sorted(algebra.factors(whole), key=lambda module: module[1].numel() + module[2].numel())
    if algebra.size(whole) <= LARGE or len(modules) < 3:
        return simulate(_drawn(agreement, whole))
    n_elements = np.cumsum([down.numel() + up.numel() for _, down, up in modules])
    several = [name for name, _, _ in modules[: max(2, int((n_elements <= LARGE).sum()))]]
    one, more = (_drawn(agreement, _of_modules(whole, names)) for names in (several[:1], several))
    n, m = len(several), len(modules)
    growth = _Growth(agreement, more, (m - 1) / (n - 1), m / n)
    return growth.of(simulate(one), simulate(more))


@dataclass(frozen=True)
class _Growth:
    """Finds the parts of messages of all modules from those of one module and of several.

    Attributes:
        agreement: with the whole adapter.
        part: the same with several modules.
        times: (all - 1) / (several - 1): what all modules add to one, in units of what several add.
        modules: all / several.
    """

    agreement: Agreement
    part: Agreement
    times: float
    modules: float

    def of(self, one: Measured, more: Measured) -> Measured:
        ranks = self.part.method.ranks
        start = self.part.method.start(self.part.initial)
        told = ranks.importance(start.ranks) is None
        drawn = ranks.of_client(start, "") is None

        def client(a: Client, b: Client) -> Client:
            up, alone = (
                [self._grown(u, v, self._share(round, self.part.up, drawn)) for round, (u, v) in enumerate(pairs, 1)]
                for pairs in (zip(a.up, b.up, strict=True), zip(a.alone, b.alone, strict=True))
            )
            met = tuple(self._grown(u, v) for u, v in zip(a.met, b.met, strict=True))
            first, later, stranger = (
                self._grown(u, v) for u, v in ((a.first, b.first), (a.later, b.later), (a.stranger, b.stranger))
            )
            return Client(met, first, later, stranger, up, alone)

        together = [
            self._grown(u, v, self._share(round, self.part.down, told))
            for round, (u, v) in enumerate(zip(one.together, more.together, strict=True), 1)
        ]
        known, of_part = algebra.size(self.agreement.version_0), algebra.size(self.part.version_0)
        return Measured(
            [client(a, b) for a, b in zip(one.clients, more.clients, strict=True)], more.group, together,
            self._grown(one.whole, more.whole, known / max(1, of_part)),
        )  # fmt: skip

    def _share(self, round: int, codec: Codec, by_chance: bool) -> float:
        """How many times as many elements a message of the whole adapter has in a round."""
        sent = self.part.method.factors.sent(round, self.part.initial)
        part = {name: self.part.initial[name] for name in sent}
        if not part:
            return 1.0
        names = self.agreement.method.factors.sent(round, self.agreement.initial)
        share = sum(self.agreement.initial[name].numel() for name in names) / algebra.size(part)
        if by_chance and codec.mask == "random" and codec.density < 1:
            marked = codec.reach(part, self.part.initial, round).values()
            share *= codec.density * algebra.size(part) / max(1, sum(int(t.sum()) for t in marked))
        return share

    def _grown(self, one: Parts, more: Parts, share: float = 1.0) -> Parts:
        by_element = ("values", "positions") if self.part.up.mask == "top" else ("values",)
        found = one + self.times * (more - one)
        found = np.where(np.array([part in by_element for part in PARTS]), share * more, found)
        found[PARTS.index("scales")] = self.modules * more[PARTS.index("scales")]
        return np.rint(found).astype(np.int64)


def _of_modules(adapter: Adapter, modules: list[str]) -> Adapter:
    return {name: t for name, t in adapter.items() if name.rpartition(".")[0] in modules}


def _drawn(agreement: Agreement, shapes: Adapter) -> Agreement:
    """The agreement with an adapter of such shapes, as the run itself draws it."""
    return replace(agreement, initial=algebra.drawn({name: t.shape for name, t in shapes.items()}, agreement.seed))
