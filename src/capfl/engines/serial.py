"""The default engine: one process, one client after the other, one base model for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from capfl.checkpoint import ClientStore
from capfl.errors import CheckpointError
from capfl.roles import Agreement
from capfl.roles.client import Site, handle
from capfl.types import ClientId, Exchange, Failure


def serial(site: Callable[[ClientId], Site], store: ClientStore, agreement: Agreement) -> Exchange:
    """Visit clients in the order of the requests. A client that raises becomes a Failure."""

    def exchange(round: int, requests: Mapping[ClientId, bytes]) -> dict[ClientId, bytes | Failure]:
        replies: dict[ClientId, bytes | Failure] = {}
        for client, request in requests.items():
            try:
                memory = store.load(client, before=round)
                reply, memory = handle(request, memory, site(client), agreement)
            except CheckpointError:  # the run's own disk, not the client's doing
                raise
            except Exception as error:
                replies[client] = Failure(client, type(error).__name__, str(error) or "no reason given")
                continue
            store.save(memory, round)
            replies[client] = reply
        return replies

    return exchange
