"""The serial engine for hunting errors: the first client that raises stops the run with its own traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from capfl.checkpoint import ClientStore
from capfl.errors import CheckpointError, ClientError
from capfl.roles import Agreement
from capfl.roles.client import Site, handle
from capfl.types import ClientId, Exchange, Failure, Request


def debug(site: Callable[[ClientId], Site], store: ClientStore, agreement: Agreement) -> Exchange:
    """As ``serial``, but raises ClientError from the client's error, whatever the failure policy says."""

    def exchange(
        round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            try:
                reply, memory = handle(request(client), store.load(client, before=round), site(client), agreement)
            except CheckpointError:  # the run's own disk, not the client's doing
                raise
            except Exception as error:
                raise ClientError(type(error).__name__, round, client, str(error)) from error
            store.save(memory, round)
            yield client, reply

    return exchange
