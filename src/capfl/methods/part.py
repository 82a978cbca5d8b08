"""What the parts of a method that may remember or say something have in common."""

from __future__ import annotations

from typing import ClassVar

from capfl.types import ClientState, ServerState


class Part:
    """A part with a memory names its types, all of them frozen dataclasses. This one has none: it says nothing.

    Attributes:
        server_state: what the part keeps at the server, in ``ServerState``.
        client_state: what it keeps at each client, in ``ClientState``.
        down: the record (``wire.records``) that it adds to a broadcast.
        up: the record that it adds to a client's introduction (grouping) or update (ranks).
    """

    server_state: ClassVar[type | None] = None
    client_state: ClassVar[type | None] = None
    down: ClassVar[type | None] = None
    up: ClassVar[type | None] = None

    def announce(self, state: ServerState, client: str) -> object | None:
        """What the server tells a client, beside the adapter: a ``down``, or None."""
        return None

    def remember(self, said: object | None, memory: ClientState) -> object | None:
        """What the client keeps, a ``client_state``, once the server has ``said`` that."""
        return None
