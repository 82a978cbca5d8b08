"""The engine of simulations: all clients on this machine, one base model for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from capfl.checkpoint import ClientStore
from capfl.errors import CapflError, CheckpointError, WorkerError, code_of
from capfl.roles.agreement import Agreement
from capfl.roles.client import LocalTrainer
from capfl.site import visit
from capfl.types import ClientId, Exchange, Failure, Kind, Request
from capfl.workers import Workers

log = logging.getLogger(__name__)


def serial(
    trainer: Callable[[ClientId], LocalTrainer],
    store: ClientStore,
    agreement: Agreement,
    workers: Workers | None = None,
) -> Exchange:
    """Visit clients in the order of their ids, one after the other, or as many at once as there are workers.

    A client that raises, or whose worker dies, becomes a Failure; a traceback is logged.

    Raises:
        CheckpointError: the run's own disk fails, which is no client's failure.
    """
    crew = workers or Workers()

    def exchange(
        kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        def answer(client: ClientId, blob: bytes) -> bytes | Failure:
            try:
                return visit(kind, round, blob, trainer(client), store, agreement)
            except CheckpointError:
                raise
            except Exception as error:
                log.debug("client %s failed in round %d", client, round, exc_info=error)
                text = str(error) if isinstance(error, CapflError) else f"{type(error).__name__}: {error}"
                return Failure(client, kind, text, code_of(error))

        for client, reply in crew.each(answer, clients, request):
            yield client, Failure(client, kind, str(reply)) if isinstance(reply, WorkerError) else reply

    return exchange
