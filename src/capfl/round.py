"""One federated round, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Sequence

from capfl.config.schema import FederationConfig
from capfl.errors import ClientError, WireError
from capfl.rng import stream
from capfl.roles import Agreement, server
from capfl.types import ClientId, Entry, Exchange, Failure, RoundRecord, ServerState, Update


def run_round(
    state: ServerState,
    clients: Sequence[ClientId],
    agreement: Agreement,
    exchange: Exchange,
    config: FederationConfig,
    seed: int,
) -> tuple[ServerState, RoundRecord]:
    """Sample clients, send, wait, receive, aggregate. The state that comes in is not changed.

    Raises:
        ClientError: a client failed and the policy is to stop, or no client answered.
    """
    began = time.monotonic()
    round = state.round + 1

    # server: who takes part, and what each of them is told
    chosen = sample(clients, config.fraction, seed, round)
    requests = server.open_round(state, chosen, agreement)

    # clients: every request goes out, every reply or failure comes back
    ledger: list[Entry] = []
    failures: list[Failure] = []
    updates: list[Update] = []
    attempts = 1 + (config.retries if config.on_failure == "retry" else 0)
    waiting = requests
    for _ in range(attempts):
        ledger += [Entry(round, client, "down", len(blob)) for client, blob in waiting.items()]
        replies = exchange(round, waiting)
        failed = []
        for client in sorted(waiting):
            reply = replies.get(client, Failure(client, "reply", "no reply came"))
            if isinstance(reply, bytes):
                ledger.append(Entry(round, client, "up", len(reply)))
                try:
                    updates.append(server.read_update(reply, client, round, agreement))
                    continue
                except WireError as error:
                    reply = Failure(client, "decode", str(error))
            failed.append(reply)
        if failed and config.on_failure == "stop":
            raise ClientError(failed[0].stage, round, failed[0].client, failed[0].reason)
        failures += failed
        waiting = {failure.client: requests[failure.client] for failure in failed}
        if not waiting:
            break
    if not updates:
        raise ClientError(failures[-1].stage, round, failures[-1].client, f"no client answered; {failures[-1].reason}")

    # server: the new global state, and what there is to know about the round
    new_state = server.close_round(state, updates, agreement)
    updates.sort(key=lambda update: update.client)
    return new_state, RoundRecord(
        round=round,
        clients=tuple(u.client for u in updates),
        losses={u.client: u.loss for u in updates},
        steps={u.client: u.steps for u in updates},
        failures=tuple(failures),
        ledger=tuple(ledger),
        seconds=time.monotonic() - began,
    )


def sample(clients: Sequence[ClientId], fraction: float, seed: int, round: int) -> list[ClientId]:
    """round(fraction * n) clients, at least one, drawn without replacement and sorted by id."""
    count = max(1, int(fraction * len(clients) + 0.5))
    drawn = stream(seed, "sample", round).permutation(len(clients))[:count]
    return sorted(sorted(clients)[i] for i in drawn)
