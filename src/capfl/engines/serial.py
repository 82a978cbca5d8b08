"""The engine of simulations: one process, one client after the other, one base model for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from capfl.checkpoint import ClientStore
from capfl.errors import CapflError, CheckpointError, code_of
from capfl.roles.agreement import Agreement
from capfl.roles.client import LocalTrainer
from capfl.roles.keyring import Keyring
from capfl.site import visit
from capfl.types import ClientId, Exchange, Failure, Kind, Request

log = logging.getLogger(__name__)


def serial(trainer: Callable[[ClientId], LocalTrainer], store: ClientStore, agreement: Agreement) -> Exchange:
    """Visit clients in the order of their ids. A client that raises becomes a Failure; its traceback is logged.

    Raises:
        CheckpointError: the run's own disk fails, which is no client's failure.
    """

    keyrings: dict[ClientId, Keyring] = {}

    def visited(client: ClientId) -> LocalTrainer:
        made = trainer(client)
        return replace(made, keyring=keyrings.setdefault(client, Keyring())) if agreement.secure else made

    def exchange(
        kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        for client in clients:
            try:
                reply = visit(kind, round, request(client), visited(client), store, agreement)
            except CheckpointError:
                raise
            except Exception as error:
                log.debug("client %s failed in round %d", client, round, exc_info=error)
                text = str(error) if isinstance(error, CapflError) else f"{type(error).__name__}: {error}"
                yield client, Failure(client, kind, text, code_of(error))
                continue
            yield client, reply

    return exchange
