"""The serial engine for hunting errors: the first client that raises stops the run with its own traceback."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from capfl.checkpoint import ClientStore
from capfl.errors import ClientError
from capfl.roles import Agreement
from capfl.roles.client import Site, handle
from capfl.types import ClientId, Exchange, Failure


def debug(site: Callable[[ClientId], Site], store: ClientStore, agreement: Agreement) -> Exchange:
    """As ``serial``, but raises ClientError from the client's error, whatever the failure policy says."""

    def exchange(round: int, requests: Mapping[ClientId, bytes]) -> dict[ClientId, bytes | Failure]:
        replies: dict[ClientId, bytes | Failure] = {}
        for client, request in requests.items():
            try:
                reply, memory = handle(request, store.load(client, before=round), site(client), agreement)
            except Exception as error:
                raise ClientError(type(error).__name__, round, client, str(error)) from error
            store.save(memory, round)
            replies[client] = reply
        return replies

    return exchange
