"""The end of a run: every client makes its own model and says how all of them do on its own test items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.federation import Federation
from capfl.metrics import of_task
from capfl.report.progress import Callback
from capfl.report.summary import TOGETHER, ClientRow, Summary, group_rows
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.cohort import secure_scores
from capfl.roles.talk import Talk
from capfl.samples import OF_MAIN
from capfl.types import Adapter, ClientId, Evaluation, Exchange, Failure, RoundRecord, Score, ServerState
from capfl.wire.totals import Total


@dataclass(frozen=True)
class Finished:
    """A method after its last round."""

    state: ServerState
    agreement: Agreement
    participants: Sequence[ClientId]
    exchange: Exchange
    records: Sequence[RoundRecord]

    def evaluations(
        self, config: FederationConfig, callback: Callback
    ) -> tuple[dict[ClientId, Evaluation], list[Talk]]:
        """What each client says of its models, and the messages that it took. With secure aggregation what all say
        together, under the name ``TOGETHER``, or of each task by itself.

        Raises:
            ClientError: a client failed and the policy is to stop, or no client answered.
        """
        talk = Talk("evaluate", self.state, self.agreement, self.exchange, config)
        callback.on_evaluation(len(self.participants))
        if self.agreement.secure:
            total, talks = secure_scores(self.participants, talk, callback.on_evaluated)
            return of_all(total, talk.round), talks
        ranks: dict[tuple[float, ...], Mapping[str, float]] = {}

        def read(
            reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
        ) -> tuple[Evaluation, dict[str, int]]:
            said, parts = server.read_evaluation(reply, client, state, agreement)
            shared = ranks.setdefault(tuple(said.ranks.values()), said.ranks)  # many clients have the same
            return replace(said, ranks=shared), parts

        answers = talk.ask(self.participants, read, callback.on_evaluated)
        return {evaluation.client: evaluation for evaluation in answers}, [talk]


def of_all(total: Total, round: int) -> dict[str, Evaluation]:
    """What all clients say together, as if one client with all their items had said it; each task by itself."""
    alone = len(total.tasks) == 1
    return {
        name: Evaluation(round, name, said.n_train, said.test, said.scores, total.ranks)
        for said in total.tasks
        for name in (TOGETHER if alone else f"{TOGETHER}, {said.task}",)
    }


def evaluate(
    finished: Mapping[str, Finished], config: FederationConfig, federation: Federation | None, callback: Callback
) -> Summary:
    """Ask the clients of the method, the first of ``finished``, and of the local-only reference; and sum up.

    Every model has taken the same number of optimiser steps on a client's items: where the method's personal
    model is the global adapter after one more round of local steps, the local-only one takes them as well.
    A client that has failed, where the policy allows that, has no row. With secure aggregation there is one row of all
    clients, or of all with one kind of task.

    Args:
        federation: all clients' data, if they are in this process; a reference that pools them is scored on these.
    """
    name, main = next(iter(finished.items()))
    evaluations, talks = main.evaluations(config, callback)
    ledger = [entry for record in main.records for entry in record.ledger]
    ledger += [entry for talk in talks for entry in talk.ledger]
    sent: dict[str, Counter[ClientId]] = {"up": Counter(), "down": Counter()}
    for entry in ledger:
        sent[entry.direction][entry.client] += entry.bytes
    failures: list[Failure] = [failure for talk in talks for failure in talk.failures]
    of_local: dict[ClientId, Evaluation] = evaluations if name == "local" else {}
    if "local" in finished and name != "local":
        of_local, others = finished["local"].evaluations(config, callback)
        failures += [failure for talk in others for failure in talk.failures]
    if main.agreement.method.pooled and federation is not None:
        evaluations = _of_members(federation, main)
    central: dict[ClientId, dict[str, Score]] = {}
    if federation and "centralised" in finished:
        central = federation.tested({"global": finished["centralised"].state.everybody.adapter}, list(evaluations))

    def bytes_of(direction: str, client: ClientId) -> int:
        return sent[direction].total() if main.agreement.secure else sent[direction][client]

    def row(client: ClientId, own: Evaluation) -> ClientRow:
        scores = {name: own.scores[model] for model, name in OF_MAIN.items() if model in own.scores}
        if client in of_local:
            scores["local_only"] = of_local[client].scores["personal"]
        if client in central:
            scores["centralised"] = central[client]["global"]
        return ClientRow(
            id=client,
            n_train=own.n_train,
            n_test=own.test.number,
            metrics=of_task(main.agreement.metrics, own.test.task),
            scores={model: score.metrics for model, score in scores.items()},
            rank=fmean(own.ranks.values()),
            ranks=own.ranks,
            group=main.state.group_of.get(client),
            chance=own.test.chance,
            majority=own.test.majority,
            bytes_up=bytes_of("up", client),
            bytes_down=bytes_of("down", client),
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


def _of_members(federation: Federation, pooled: Finished) -> dict[ClientId, Evaluation]:
    """What each client would say of a model that was trained on everybody's data."""
    initial, trained = pooled.agreement.initial, pooled.state.everybody
    adapters: dict[str, Adapter] = {"base": initial, "global": trained.adapter | trained.known}
    return {
        client: Evaluation(
            round=pooled.state.round + 1,
            client=client,
            n_train=len(federation.splits[client].train),
            test=federation.held_out(client),
            scores=scores,
            ranks=algebra.ranks(initial),
        )
        for client, scores in federation.tested(adapters, federation.clients).items()
    }
