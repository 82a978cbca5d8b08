"""Changes of an adapter as whole numbers whose sum says what their mean is, whoever sent which.

The sum of many clients' values says something only if one step means the same for all of them. So a client sends every
value in units of a scale of its own, which is of a rank, and sends the scale beside it; both are whole numbers. With m
clients, levels j_k of L and scales s_k, the server makes of the two sums

    mean = (sum_k (2 j_k + 1 - L) / m) (sum_k s_k / m),

the mean of the values in units of their scale, times the mean of the scales. It is the mean of what clients have sent
where their scales are equal. Where they differ, it is the mean of changes of the mean length: all clients count
alike, however far they went. One bit is L = 2, the two signs. What clients say of their ranks goes beside the scales,
in whole numbers of a unit as well.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from capfl.errors import TrainingError, WireError
from capfl.maths.masks import NUMBER, WIDEST, Whole, kind_of
from capfl.rng import Draw
from capfl.types import Adapter
from capfl.wire.budget import write_importance
from capfl.wire.codec import Codec
from capfl.wire.layout import Floats, Ints, Layout
from capfl.wire.scales import Doubles
from capfl.wire.values import Groups

BITS = {"ternary": 1, "2bit": 2, "3bit": 3, "4bit": 4, "8bit": 8}
"""Of the values of a codec that can be summed: 2^bits levels."""

UNIT = 2.0**-24  # of a scale
OF_LOSS = 2.0**-16  # nats
OF_RANKS = 2.0**-18  # of what a client says of a rank
BESIDE = 2  # numbers that are no scales: loss and steps


@dataclass(frozen=True)
class Mean:
    """What a sum says of its clients together: the mean of their changes, of their losses and of their steps.

    Where noise is on the changes, nothing else is said.
    """

    change: Adapter
    loss: float | None = None  # nats a token
    steps: float | None = None
    ranks: Doubles = field(default_factory=lambda: np.zeros(0))  # (m,): of what they say of their ranks


class Summed:
    """How the updates of one version become whole numbers. Everything follows from what both sides know.

    Args:
        codec: of the updates; its values are among ``BITS``, and all clients send the same elements.
        part: has the names of the tensors that the updates have.
        template: the agreed adapter.
        number: of the version that comes after the one that clients were sent.
        clients: how many may be in the sum.
        importance: of the ranks, the same for all clients; None: all are alike.
        said: how many numbers a client says of its ranks.

    Raises:
        WireError: so many clients make sums that no value has room for.
    """

    def __init__(
        self,
        codec: Codec,
        part: Adapter,
        template: Adapter,
        number: int,
        clients: int,
        importance: npt.ArrayLike | None = None,
        said: int = 0,
    ) -> None:
        self.clients, self._codec, self._template, self._number = clients, codec, template, number
        self._said = said
        self._layout, whole = Layout.of(part, template), Layout.of(template, template)
        self._coded = None if importance is None else write_importance(importance, whole.n_ranks)
        self._kept = codec.common(self._layout, whole, number, self._coded)
        self._ranks = Groups.of(self._kept, self._layout.rank_starts)
        self._levels = 2 ** BITS[codec.values.name]
        self._fit((clients * (self._levels - 1)).bit_length())

    def _fit(self, width: int) -> None:
        """Take so many bits a value."""
        if width > WIDEST:
            raise WireError(f"a sum of {self.clients} clients takes {width} bits a value, {WIDEST} at most")
        self.width = width

    @property
    def n_values(self) -> int:
        return len(self._kept)

    @property
    def n_numbers(self) -> int:
        return len(self._ranks.first) + self._said + BESIDE

    def whole(
        self, change: Adapter, loss: float, steps: int, ranks: npt.ArrayLike = (), draw: Draw = os.urandom
    ) -> Whole:
        """One client's update.

        Args:
            ranks: (m,), from 0 on: what it says of its ranks.
            draw: of noise; here there is none.

        Raises:
            WireError: a value is not finite.
            TrainingError: a scale or the loss is too large for a number of 32 bits to hold the sum.
        """
        values, half = self._selected(change), self._levels // 2
        scales, levels = np.zeros(len(self._ranks.first)), np.empty(len(values), np.uint8)
        for own, rows in self._ranks.blocks():
            first, counts = self._ranks.first[own] - rows.start, self._ranks.counts[own]
            scales[own] = self._scale(np.abs(values[rows]).astype(np.float64), first, counts)
            step = np.repeat(2 * scales[own], counts)
            place = np.floor(np.divide(values[rows], step, out=np.zeros(len(step)), where=step > 0)) + half
            odd = (values[rows] == 0) & (self._kept[rows] % 2 == 1)  # zeros push to both sides alike
            levels[rows] = np.clip(place - odd, 0, self._levels - 1)
        said = np.rint(np.asarray(ranks, np.float64) / OF_RANKS)
        numbers = [*np.rint(scales / UNIT), *said, round(loss / OF_LOSS), steps]
        largest = (2**NUMBER - 1) // self.clients
        if max(numbers) > largest:
            raise TrainingError(
                f"the largest scale of the change is {scales.max(initial=0.0):.3g}, the loss {loss:.3g}, the largest "
                f"number of a rank {said.max(initial=0.0) * OF_RANKS:.3g}; a sum of {self.clients} clients has room "
                f"for {largest * UNIT:.3g}, {largest * OF_LOSS:.3g} and {largest * OF_RANKS:.3g}: is "
                "train.learning_rate too high?"
            )
        return Whole(levels.astype(kind_of(self.width)), self.width, np.array(numbers).astype(np.uint32))

    def _selected(self, change: Adapter) -> Floats:
        """The values (n_values,) of a change that travel. Raises WireError: as ``whole``."""
        flat, _, _ = self._codec.select(change, self._template, self._number, self._coded)
        selected: Floats = flat[self._kept]
        return selected

    def _adapter(self, values: npt.NDArray[np.float64]) -> Adapter:
        """The change whose values that travel, (n_values,), are these. All others are zero."""
        flat = np.zeros(self._layout.size, np.float32)
        flat[self._kept] = values
        return self._layout.unflatten(flat)

    def _scale(self, magnitude: Doubles, first: Ints, counts: Ints) -> Doubles:
        """The scale of every rank: half the distance between two levels."""
        if self._levels > 2:
            largest: Doubles = np.maximum.reduceat(magnitude, first) / self._levels
            return largest
        mean: Doubles = np.add.reduceat(magnitude, first) / counts
        if self._codec.scales:  # as ternary values that are to be right on average (``wire.values``)
            energy = np.add.reduceat(magnitude**2, first) / counts
            mean = np.divide(energy, mean, out=mean, where=mean > 0)
        return mean

    def mean(self, total: Whole, clients: int) -> Mean:
        """What the sum of so many clients' numbers, without any mask, says of them.

        Raises:
            WireError: no numbers of so many clients sum to this: somebody has sent others, or a mask is left.
        """
        most = clients * (self._levels - 1)
        self._require_shape(total)
        if (total.values > most).any():
            raise WireError(f"a sum of {clients} clients has {total.values.max()} where {most} is the most")
        scales, ranks = np.split(total.numbers[:-BESIDE].astype(np.float64), [len(self._ranks.first)])
        units = (2.0 * total.values - most) / clients
        change = self._adapter(np.repeat(scales * (UNIT / clients), self._ranks.counts) * units)
        loss, steps = (int(n) for n in total.numbers[-BESIDE:])
        return Mean(change, loss * OF_LOSS / clients, steps / clients, ranks * (OF_RANKS / clients))

    def _require_shape(self, total: Whole) -> None:
        """Raises WireError: these are other numbers."""
        if (len(total.values), total.width, len(total.numbers)) != (self.n_values, self.width, self.n_numbers):
            raise WireError("a sum has other numbers than the updates of this round")
