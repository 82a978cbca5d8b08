"""The default engine: one process, one client after the other, one base model for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from capfl.checkpoint import ClientStore
from capfl.errors import CheckpointError
from capfl.roles.agreement import Agreement
from capfl.roles.client import LocalTrainer
from capfl.site import visit
from capfl.types import ClientId, Exchange, Failure, Kind, Request


def serial(trainer: Callable[[ClientId], LocalTrainer], store: ClientStore, agreement: Agreement) -> Exchange:
    """Visit clients in the order of their ids. A client that raises becomes a Failure."""

    def exchange(
        kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            try:
                reply = visit(kind, round, request(client), trainer(client), store, agreement)
            except CheckpointError:  # the run's own disk, not the client's doing
                raise
            except Exception as error:
                code = getattr(error, "code", "internal")
                yield client, Failure(client, type(error).__name__, str(error) or "no reason given", code)
                continue
            yield client, reply

    return exchange
