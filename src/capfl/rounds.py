"""All rounds of one method, one after the other, until the last or until the validation loss no longer falls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from capfl.checkpoint import RunFolder, StateReader
from capfl.config import Config
from capfl.errors import DataError
from capfl.evaluation import Finished
from capfl.federation import Federation
from capfl.maths.privacy import epsilon
from capfl.methods.items import epsilon_of_items, trainings
from capfl.methods.private import Noisy
from capfl.methods.secure import NoisySum
from capfl.report.progress import Callback
from capfl.report.summary import Summary
from capfl.roles.agreement import Agreement
from capfl.round import run_round, sample_size, validate_round, validation_of
from capfl.types import ClientId, Exchange, RoundRecord, ServerState


def run_method(
    agreement: Agreement,
    participants: Sequence[ClientId],
    exchange: Exchange,
    federation: Federation | None,
    config: Config,
    folder: RunFolder,
    callback: Callback,
    rounds: int,
) -> Finished:
    """All rounds of one method, from wherever its folder stands. After each, the whole state is on disk.

    Args:
        federation: all clients' data, if they are in this process: then nobody is asked to validate. Otherwise clients
            are asked to validate the newest version, and have then been sent it.
        rounds: at most so many; of a reference as many as the run's own method has taken.

    Raises:
        DataError: a run is to end by its validation loss, and clients have two tasks, whose losses have no mean.
    """
    method, combine = agreement.method, agreement.method.combine
    state = folder.resumed(StateReader(method, agreement.initial))
    state = state or method.start(agreement.initial, participants)
    callback.on_start(method.name, rounds, state.round, sample_size(len(participants), config.federation.fraction))
    validated = config.evaluation.every if method.has_server_model and config.partition.validation else 0

    def due(record: RoundRecord) -> bool:
        return bool(validated) and record.round % validated == 0 and not record.validation

    def ask(state: ServerState, record: RoundRecord) -> tuple[ServerState, RoundRecord]:
        after, record = validate_round(state, record, participants, agreement, exchange, config.federation)
        return folder.amend(state, after, record), record

    records = folder.rounds()
    for record in records[-1:]:  # the run was stopped between a round and its validation
        if due(record):
            state, records[-1] = ask(state, record)
    while state.round < rounds and (method.name != config.method.name or not why_stopped(records, config)):
        state, record = run_round(
            state, participants, agreement, exchange, config.federation, config.seed, callback.on_client
        )
        if isinstance(combine, Noisy | NoisySum):
            spent = epsilon(combine.noise.multiplier, max(state.visits.values()), combine.noise.delta)
            record = replace(record, epsilon=spent)
        if noise := config.privacy.of_items:
            taken = {c: trainings(method, n) for c, n in asked_to_train(state, [*records, record]).items()}
            sizes = federation.sizes if federation else state.claims
            record = replace(record, epsilon=epsilon_of_items(noise, config.train, taken, sizes))
        if due(record) and federation is not None:
            record = replace(record, **validation_of(federation.validate(state)))
        state = folder.commit(state, record)
        if due(record):
            state, record = ask(state, record)
        records.append(record)
        callback.on_round(record)
    return Finished(state, agreement, participants, exchange, records)


def asked_to_train(state: ServerState, records: Sequence[RoundRecord]) -> Counter[ClientId]:
    """How often each client may have trained in some rounds: each try that failed may have come after its steps."""
    return Counter(state.visits) + Counter(failure.client for record in records for failure in record.failures)


def epsilon_in_all(
    finished: Sequence[Finished], summary: Summary, federation: Federation | None, config: Config
) -> float | None:
    """The largest of all clients, at the end of a run; None: the run has none, or it is not known here.

    Of clients, that of the run's own method, which is the first. Of items, that of all steps on a client's: in rounds,
    for its personal model, and the same of the references.
    """
    noise = config.privacy.of_items
    if noise is None:
        return finished[0].records[-1].epsilon
    taken = Counter[ClientId]()
    failed = Counter(failure.client for failure in summary.evaluation_failures)
    for one in finished:
        asked, ends = asked_to_train(one.state, one.records), "personal" in one.agreement.scored
        for client in one.participants:
            taken[client] += trainings(one.agreement.method, asked[client], ends * (1 + failed[client]))
    sizes = federation.sizes if federation else {row.id: row.n_train for row in summary.rows}
    return epsilon_of_items(noise, config.train, taken, sizes)


def why_stopped(records: Sequence[RoundRecord], config: Config) -> str | None:
    """Why a run ends after these rounds although there are more; None: it does not.

    Raises:
        DataError: as ``run_method``.
    """
    patience = config.evaluation.patience
    validated = [record for record in records if record.validation]
    if patience is None or not validated:
        return None
    if any(record.validation_loss is None for record in validated):
        raise DataError(
            "evaluation.patience: some clients have options and others completions, and their losses "
            "cannot be averaged; leave it out, or make two runs"
        )
    best = min(validated, key=lambda record: math.inf if math.isnan(loss := record.validation_loss or 0.0) else loss)
    last = validated[-1].round
    if last - best.round < patience or len(records) >= config.federation.rounds:
        return None
    return (
        f"ended after round {last} of {config.federation.rounds}: the validation loss was lowest after round "
        f"{best.round}, {best.validation_loss:.4g}, and evaluation.patience is {patience}"
    )
