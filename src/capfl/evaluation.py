"""The end of a run: every client makes its own model and says how all of them do on its own test items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.federation import Federation
from capfl.metrics import of_task
from capfl.report.progress import Callback
from capfl.report.summary import ClientRow, Summary, group_rows
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.samples import OF_MAIN
from capfl.talk import Talk
from capfl.types import Adapter, ClientId, Evaluation, Exchange, Failure, RoundRecord, ServerState


@dataclass(frozen=True)
class Finished:
    """A method after its last round."""

    state: ServerState
    agreement: Agreement
    participants: Sequence[ClientId]
    exchange: Exchange
    records: Sequence[RoundRecord]

    def evaluations(self, config: FederationConfig, callback: Callback) -> tuple[dict[ClientId, Evaluation], Talk]:
        """What each client says of its models, and the messages that it took.

        Raises:
            ClientError: a client failed and the policy is to stop, or no client answered.
        """
        talk = Talk("evaluate", self.state, self.agreement, self.exchange, config)
        callback.on_evaluation(len(self.participants))
        answers = talk.ask(self.participants, server.read_evaluation, callback.on_evaluated)
        return {evaluation.client: evaluation for evaluation in answers}, talk


def evaluate(
    finished: Mapping[str, Finished], config: FederationConfig, federation: Federation | None, callback: Callback
) -> Summary:
    """Ask the clients of the method, the first of ``finished``, and of the local-only reference; and sum up.

    Every model has taken the same number of optimiser steps on a client's items: where the method's personal
    model is the global adapter after one more round of local steps, the local-only one takes them as well.
    A client that has failed, where the policy allows that, has no row.

    Args:
        federation: all clients' data, if they are in this process; a reference that pools them is scored on these.
    """
    name, main = next(iter(finished.items()))
    evaluations, talk = main.evaluations(config, callback)
    ledger = [*(entry for record in main.records for entry in record.ledger), *talk.ledger]
    sent: Counter[tuple[ClientId, str]] = Counter()
    for entry in ledger:
        sent[entry.client, entry.direction] += entry.bytes
    failures: list[Failure] = talk.failures
    of_local: dict[ClientId, Evaluation] = evaluations if name == "local" else {}
    if "local" in finished and name != "local":
        of_local, local_talk = finished["local"].evaluations(config, callback)
        failures = [*failures, *local_talk.failures]
    if main.agreement.method.pooled and federation is not None:
        evaluations = {client: _of_member(client, federation, main) for client in federation.clients}
    central = finished["centralised"].state.everybody.adapter if "centralised" in finished else None

    def row(client: ClientId, own: Evaluation) -> ClientRow:
        scores = {name: own.scores[model] for model, name in OF_MAIN.items() if model in own.scores}
        if client in of_local:
            scores["local_only"] = of_local[client].scores["personal"]
        if federation and central:
            scores["centralised"] = federation.evaluate(client, {"global": central})["global"]
        return ClientRow(
            id=client,
            n_train=own.n_train,
            n_test=own.test.number,
            metrics=of_task(main.agreement.metrics, own.test.task),
            scores={model: dict(score.metrics) for model, score in scores.items()},
            rank=fmean(own.ranks.values()),
            ranks=dict(own.ranks),
            group=main.state.group_of.get(client),
            chance=own.test.chance,
            majority=own.test.majority,
            bytes_up=sent[client, "up"],
            bytes_down=sent[client, "down"],
        )

    rows = tuple(row(client, own) for client, own in sorted(evaluations.items()))
    return Summary(
        method=name,
        rounds=main.state.round,
        rows=rows,
        ledger=tuple(ledger),
        groups=group_rows(main.records),
        failures=sum(len(record.failures) for record in main.records),
        evaluation_failures=tuple(failures),
        cache=federation.cache.usage() if federation else {},
        seconds=0.0,
        peak_memory=0,
    )


def _of_member(client: ClientId, federation: Federation, pooled: Finished) -> Evaluation:
    """What a client would say of a model that was trained on everybody's data."""
    initial, trained = pooled.agreement.initial, pooled.state.everybody
    adapters: dict[str, Adapter] = {"base": initial, "global": trained.adapter | trained.known}
    return Evaluation(
        round=pooled.state.round + 1,
        client=client,
        n_train=len(federation.splits[client].train),
        test=federation.held_out(client),
        scores=federation.evaluate(client, adapters),
        ranks=algebra.ranks(initial),
    )
