"""Numbers >= 0 as floats of few bits of mantissa: neighbours differ by small whole numbers, which are Rice-coded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from capfl.errors import WireError
from capfl.wire import rice
from capfl.wire.layout import Ints

DOWN, NEAREST, UP = 0.0, 0.5, 1.0  # added before the cut, in units of what is cut off

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scales:
    """Scales >= 0 as whole numbers that grow with them: sign, exponent and ``mantissa`` bits of a float32."""

    mantissa: int

    def code(self, scale: npt.NDArray[np.floating[Any]], rounding: float = NEAREST) -> Ints:
        cut = 23 - self.mantissa
        pattern = scale.astype(np.float32).view(np.int32).astype(np.int64)
        codes: Ints = np.minimum((pattern + int(rounding * (2**cut - 1) + 0.5)) >> cut, self._largest)
        return codes

    def value(self, codes: Ints) -> Doubles:
        """What the codes stand for."""
        return (codes << (23 - self.mantissa)).astype(np.int32).view(np.float32).astype(np.float64)

    def write(self, codes: Ints) -> bytes:
        """The first code in two bytes, then the differences from one to the next."""
        if not len(codes):
            return b""
        steps = rice.zigzag(np.diff(codes))
        k = rice.best_k(int(steps.sum()), len(steps))
        return int(codes[0]).to_bytes(2, "little") + bytes([k]) + rice.encode(steps, np.full(len(steps), k))

    def read(self, data: memoryview, count: int) -> Doubles:
        """``count`` scales from what ``write`` wrote.

        Raises:
            WireError: they are cut off, or one is not a finite positive number.
        """
        if not count:
            if len(data):
                raise WireError(f"{len(data)} bytes of scales where there is nothing to scale")
            return np.zeros(0)
        if len(data) < 3 or data[2] > rice.MAX_K:
            raise WireError("scales are cut off")
        steps = rice.unzigzag(rice.decode(data[3:], np.full(count - 1, data[2])))
        codes: Ints = np.cumsum(np.append(int.from_bytes(data[:2], "little"), steps))
        if (codes < 0).any() or (codes > self._largest).any():
            raise WireError("a scale is not a finite positive number")
        return self.value(codes)

    @property
    def _largest(self) -> int:
        return (255 << self.mantissa) - 1
