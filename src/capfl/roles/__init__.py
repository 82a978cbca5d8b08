"""The two sides of a round: bytes in, bytes out, state in, state out."""

from __future__ import annotations

from dataclasses import dataclass

from capfl.methods.base import Method
from capfl.types import Adapter
from capfl.wire import Codec


@dataclass(frozen=True)
class Agreement:
    """What server and clients agreed on before the first round.

    ``initial`` is the adapter that everybody can derive from the seed. It is also the template that messages are
    decoded against.
    """

    method: Method
    codec: Codec
    initial: Adapter
