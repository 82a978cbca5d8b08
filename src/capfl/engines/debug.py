"""The serial engine for hunting errors: the first client that raises stops the run with its own traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from capfl.checkpoint import ClientStore
from capfl.errors import CheckpointError, ClientError
from capfl.roles import Agreement
from capfl.roles.client import Site
from capfl.site import visit
from capfl.types import ClientId, Exchange, Failure, Kind, Request


def debug(site: Callable[[ClientId], Site], store: ClientStore, agreement: Agreement) -> Exchange:
    """As ``serial``, but raises ClientError from the client's error, whatever the failure policy says."""

    def exchange(
        kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            try:
                reply = visit(kind, round, request(client), site(client), store, agreement)
            except CheckpointError:  # the run's own disk, not the client's doing
                raise
            except Exception as error:
                raise ClientError(type(error).__name__, round, client, str(error)) from error
            yield client, reply

    return exchange
