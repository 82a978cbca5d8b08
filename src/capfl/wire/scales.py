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
        """The codes of scales, the largest finite one for what is larger."""
        cut = 23 - self.mantissa
        pattern = scale.astype(np.float32).view(np.int32).astype(np.int64)
        codes: Ints = np.minimum((pattern + int(rounding * (2**cut - 1) + 0.5)) >> cut, self._largest)
        return codes

    def value(self, codes: Ints) -> Doubles:
        """What the codes stand for."""
        return (codes << (23 - self.mantissa)).astype(np.int32).view(np.float32).astype(np.float64)

    def write(self, codes: Ints) -> bytes:
        """The first code in two bytes, then the differences from one to the next; at least one code."""
        return int(codes[0]).to_bytes(2, "little") + rice.write(rice.zigzag(np.diff(codes)))

    def read(self, data: memoryview, n: int) -> Doubles:
        """``n`` scales, at least one, from what ``write`` wrote.

        Raises:
            WireError: they are cut off, or one is not a finite positive number.
        """
        steps = rice.unzigzag(rice.read(data[2:], n - 1))
        codes: Ints = np.cumsum(np.append(int.from_bytes(data[:2], "little"), steps))
        if (codes < 0).any() or (codes > self._largest).any():
            raise WireError("a scale is not a finite positive number")
        return self.value(codes)

    @property
    def _largest(self) -> int:
        return (255 << self.mantissa) - 1
