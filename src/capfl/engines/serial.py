"""The engine of simulations: all clients on this machine, one base model for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from capfl.checkpoint import ClientStore
from capfl.errors import CapflError, CheckpointError, WorkerError, code_of, described
from capfl.roles.agreement import Agreement
from capfl.roles.client import LocalTrainer, Training
from capfl.roles.keyring import Keyring
from capfl.site import visit, visiting
from capfl.types import ClientId, Exchange, Failure, Kind, LocalSteps, Request, Trained
from capfl.workers import Workers

log = logging.getLogger(__name__)


def serial(
    trainer: Callable[[ClientId], LocalTrainer],
    store: ClientStore,
    agreement: Agreement,
    workers: Workers | None = None,
) -> Exchange:
    """Visit clients in the order of their ids, one after the other, or as many at once as there are workers.

    With one worker, as many clients as their trainers' ``lot`` allows are asked before the first of them trains, and
    train together. A client that raises, or whose worker dies, becomes a Failure; a traceback is logged.

    Raises:
        CheckpointError: the run's own disk fails, which is no client's failure.
    """
    crew = workers or Workers()

    keyrings: dict[ClientId, Keyring] = {}

    def keyed(client: ClientId) -> LocalTrainer:
        made = trainer(client)
        return replace(made, keyring=keyrings.setdefault(client, Keyring())) if agreement.secure else made

    def exchange(
        kind: Kind, round: int, clients: Sequence[ClientId], request: Request
    ) -> Iterator[tuple[ClientId, bytes | Failure]]:
        def failed(client: ClientId, error: Exception) -> Failure:
            log.debug("client %s failed in round %d", client, round, exc_info=error)
            text = str(error) if isinstance(error, CapflError) else described(error)
            return Failure(client, kind, text, code_of(error))

        def answer(client: ClientId, blob: bytes) -> bytes | Failure:
            try:
                return visit(kind, round, blob, keyed(client), store, agreement)
            except CheckpointError:
                raise
            except Exception as error:
                return failed(client, error)

        def visited(client: ClientId, trainers: list[LocalTrainer]) -> Training[bytes | Failure]:
            blob = request(client)
            try:
                trainers.append(keyed(client))
                return (yield from visiting(kind, round, blob, trainers[0], store, agreement))
            except CheckpointError:
                raise
            except Exception as error:
                return failed(client, error)

        if crew.number > 1:
            for client, reply in crew.each(answer, clients, request):
                yield client, Failure(client, kind, str(reply)) if isinstance(reply, WorkerError) else reply
            return
        begun: list[_Visit] = []
        for client in clients:
            trainers: list[LocalTrainer] = []
            begun.append(_Visit(client, visited(client, trainers), trainers))
            begun[-1].go_on(None)
            if len(begun) >= max(visit.at_once for visit in begun):
                yield from _finished(begun)
                begun = []
        yield from _finished(begun)

    return exchange


@dataclass
class _Visit:
    """One client that is asked: the local steps that it waits for, or its reply."""

    client: ClientId
    going: Training[bytes | Failure]
    trainers: list[LocalTrainer]  # its own, once it has one
    steps: LocalSteps | None = None
    reply: bytes | Failure = b""

    @property
    def at_once(self) -> int:
        """How many clients are asked before the first of them trains: one, where this one does not wait to train."""
        lot = self.trainers[0].lot if self.steps else None
        return lot.size if lot else 1

    def go_on(self, trained: Trained | Exception | None) -> None:
        """Up to the next local steps, or to the reply."""
        try:
            if isinstance(trained, Exception):
                self.steps = self.going.throw(trained)
            else:
                self.steps = self.going.send(trained)  # type: ignore[arg-type]  # None starts it
        except StopIteration as returned:
            self.steps, self.reply = None, returned.value


def _finished(visits: Sequence[_Visit]) -> Iterator[tuple[ClientId, bytes | Failure]]:
    """The clients' replies, after whatever local steps they wait for."""
    while waiting := [(visit, visit.steps) for visit in visits if visit.steps]:
        try:
            results = _trained(waiting)
        except Exception as error:  # none of them was trained
            results = [error] * len(waiting)
        for (one, _), result in zip(waiting, results, strict=True):
            one.go_on(result)
    for one in visits:
        yield one.client, one.reply


def _trained(waiting: Sequence[tuple[_Visit, LocalSteps]]) -> Sequence[Trained | Exception]:
    (first, steps), *others = waiting
    trainer = first.trainers[0]
    if others and trainer.lot:
        return trainer.lot.train([(visit.client, steps) for visit, steps in waiting])
    return [trainer.train(steps.start, steps.round, steps.first_step, steps.penalty)]
