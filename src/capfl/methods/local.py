"""Local only: every client trains alone and nothing but headers crosses. What joining must beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from capfl.methods.base import Method
from capfl.types import Adapter, ClientState, ServerState, Trained, Update


def local() -> Method:
    """Each client keeps its own adapter from round to round.

    Its model is this adapter after one more round of steps, as the personal models of other methods have them.
    """

    def keep(start: Adapter, trained: Trained, memory: ClientState) -> tuple[Adapter, ClientState]:
        return {}, replace(memory, adapter=trained.adapter)

    def heed_nothing(server: ServerState, updates: Iterable[Update]) -> ServerState:
        for _ in updates:  # they come as they are asked for
            pass
        return server

    return Method(
        name="local",
        about="every client alone",
        citation="reference",
        travels="nothing",
        exact=None,
        init_server=lambda init: ServerState(0, init),
        init_client=lambda client, init: ClientState(client, adapter=init),
        broadcast=lambda server: {},
        install=lambda received, memory: memory.adapter,
        trainable=lambda round, name: True,
        penalty=None,
        collect=keep,
        aggregate=heed_nothing,
        has_global=False,
    )
