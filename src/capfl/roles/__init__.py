"""The two sides of a round: bytes in, bytes out, state in, state out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from capfl.config.schema import CodecConfig
from capfl.methods.base import Method
from capfl.types import Adapter, Notes
from capfl.wire import Codec, down_codec, schema_hash, up_codec


def spent_on(notes: Notes, method: Method) -> dict[str, Any]:
    """How a message's budget is shared over ranks, by what client or server remember: arguments of ``Codec.encode``."""
    importance, alive = method.importance(notes), method.alive(notes)
    if importance is None:
        return {}
    return {"importance": importance.double().numpy(), "alive": None if alive is None else alive.numpy()}


@dataclass(frozen=True)
class Agreement:
    """What server and clients agreed on before the first round.

    ``initial`` is the adapter that everybody can derive from the seed. It is also the template that messages are
    decoded against. ``base`` identifies the base model.
    """

    method: Method
    codec: CodecConfig
    initial: Adapter
    base: str = ""
    seed: int = 0

    @cached_property
    def up(self) -> Codec:
        return up_codec(self.codec, self.seed)

    @cached_property
    def down(self) -> Codec:
        return down_codec(self.codec, self.seed)

    @cached_property
    def schema(self) -> bytes:
        return schema_hash(self.initial, self.base)

    @cached_property
    def version_0(self) -> Adapter:
        """What every client knows of the global adapter before it is told anything."""
        return self.method.broadcast(self.method.init_server(self.initial))
