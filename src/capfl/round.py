"""One federated round, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.metrics import metric
from capfl.rng import stream
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.cohort import secure_turn
from capfl.roles.talk import Talk
from capfl.types import ClientId, Exchange, RoundRecord, Score, ServerState, Tally


def run_round(
    state: ServerState,
    clients: Sequence[ClientId],
    agreement: Agreement,
    exchange: Exchange,
    config: FederationConfig,
    seed: int,
    trained: Callable[[ClientId, float], None] = lambda client, loss: None,
) -> tuple[ServerState, RoundRecord]:
    """Sample clients, send, wait, receive, aggregate. The state that comes in is not changed.

    Args:
        trained: is told of every client's mean training loss, as its update comes, if it says one.

    Raises:
        ClientError: a client failed and the policy is to stop, or no client answered.
    """
    began = time.monotonic()
    method, ranks = agreement.method, agreement.method.ranks
    chosen = sample(clients, config.fraction, seed, state.round + 1)
    state, met = introduce(state, method.grouping.unknown(state, chosen), agreement, exchange, config)
    unknown = method.grouping.unknown(state, chosen)
    chosen = [client for client in chosen if client not in unknown]
    if not chosen:
        met.require_an_answer()
    talk = Talk("train", state, agreement, exchange, config)
    aggregation = server.Aggregation(state, agreement)
    record = RoundRecord(state.round + 1, clients=(), losses={}, steps={}, failures=(), ledger=(), seconds=0.0)
    talks = [met, talk]

    for turn in method.order.of_round(chosen, state.group_of, seed, record.round):
        if agreement.secure:
            talks = [met, *secure_turn(turn, talk, aggregation, record)]
            for client, loss in record.losses.items():
                trained(client, loss)
            continue
        for client, answer in exchange("train", record.round, turn, talk.request):
            update = talk.read(client, answer, server.read_update)
            if update is None:
                continue
            aggregation.add(update)
            record.steps[client] = update.steps
            if not agreement.items_protected:
                record.losses[client] = update.loss
                trained(client, update.loss)
            kept = ranks.of_client(state, client) if update.ranks is None else ranks.in_own_model(update.ranks)
            if kept is not None:
                record.ranks[client] = algebra.living(kept, agreement.initial)
            if (kappa := ranks.kappa(update.ranks)) is not None:
                record.kappa[client] = algebra.mean_by_module(kappa, agreement.initial)
        talk.require_all(turn)
        aggregation.end_turn(asked=turn)
        talk.state = aggregation.state

    talk.require_an_answer()
    new_state = aggregation.value()
    return new_state, replace(
        record,
        clients=tuple(sorted(client for client, n in new_state.visits.items() if n != state.visits.get(client, 0))),
        failures=tuple(failure for one in talks for failure in one.failures),
        ledger=tuple(entry for one in talks for entry in one.ledger),
        groups=new_state.group_of,
        capped=aggregation.capped,
        norms=talk.norms,
        seconds=time.monotonic() - began,
    )


def introduce(
    state: ServerState,
    clients: Sequence[ClientId],
    agreement: Agreement,
    exchange: Exchange,
    config: FederationConfig,
) -> tuple[ServerState, Talk]:
    """Ask clients what their data are like. Returns the state with the groups that follow, and the messages.

    Raises:
        ClientError: as ``run_round``.
    """
    talk = Talk("introduce", state, agreement, exchange, config)
    if not clients:
        return state, talk
    said = {reply.client: reply for reply in talk.replies(clients, server.read_introduction)}
    return server.introduced(state, said, agreement), talk


def validate_round(
    state: ServerState,
    record: RoundRecord,
    clients: Sequence[ClientId],
    agreement: Agreement,
    exchange: Exchange,
    config: FederationConfig,
) -> tuple[ServerState, RoundRecord]:
    """Ask all clients how well the newest version does, after a round that is on disk: from then on they know it.

    Returns:
        The state that knows that they do, and the round's record with score, messages and failures added.

    Raises:
        ClientError: as ``run_round``.
    """
    began = time.monotonic()
    talk = Talk("validate", state, agreement, exchange, config)
    scores = {said.client: said.score for said in talk.ask(clients, server.read_validation)}
    heard = {client: state.round for client in scores if client in state.visits}
    state = server.forgotten(state, clients)
    versions = {**state.versions, **dict.fromkeys(scores, state.version)}
    state = replace(state, versions=versions, heard={**state.heard, **heard})
    return state, replace(
        record,
        failures=(*record.failures, *talk.failures),
        ledger=(*record.ledger, *(replace(entry, round=record.round) for entry in talk.ledger)),
        seconds=record.seconds + time.monotonic() - began,
        **validation_of(list(scores.values())),
    )


def validation_of(scores: Sequence[Score]) -> dict[str, Any]:
    """What a round's record says of its validation, from the clients' scores.

    Each metric is taken over the items of all clients that it measures. The losses of two kinds of task, an item's and
    a token's, have no mean.
    """
    names = dict.fromkeys(name for score in scores for name in score.metrics)
    found = {name: metric(name).value(total([s.metrics[name] for s in scores if name in s.metrics])) for name in names}
    kinds = {tuple(score.metrics) for score in scores}
    loss = total([score.loss for score in scores]).mean if len(kinds) == 1 else None
    return {"validation": found, "validation_loss": loss}


def total(tallies: Sequence[Tally]) -> Tally:
    """The sum of several clients' tallies."""
    return Tally(sum(own.sum for own in tallies), sum(own.count for own in tallies))


def sample(clients: Sequence[ClientId], fraction: float, seed: int, round: int) -> list[ClientId]:
    """``sample_size`` clients, drawn without replacement and sorted by id."""
    drawn = stream(seed, "sample", round).permutation(len(clients))[: sample_size(len(clients), fraction)]
    return sorted(sorted(clients)[i] for i in drawn)


def sample_size(n_clients: int, fraction: float) -> int:
    """How many clients take part in a round: round(fraction * n), at least one."""
    return max(1, int(fraction * n_clients + 0.5))
