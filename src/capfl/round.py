"""One federated round, from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from capfl import adapter as algebra
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
    ledger: list[Entry] = []
    failures: list[Failure] = []
    used: list[Update] = []
    ranks: dict[ClientId, list[int]] = {}

    # server: who takes part, and what each of them is told
    chosen = sample(clients, config.fraction, seed, round)

    def request(client: ClientId) -> bytes:
        message = server.request(state, client, agreement, again=any(f.client == client for f in failures))
        ledger.append(Entry(round, client, "down", len(message.blob), message.parts))
        return message.blob

    def read(client: ClientId, reply: bytes | Failure) -> Update | Failure:
        if isinstance(reply, Failure):
            return reply
        try:
            update, parts = server.read_update(reply, client, round, agreement)
        except WireError as error:
            ledger.append(Entry(round, client, "up", len(reply), {"unreadable": len(reply)}))
            return Failure(client, "decode", str(error))
        ledger.append(Entry(round, client, "up", len(reply), parts))
        return update

    # clients: every reply or failure comes back, in the order of ids; the policy says what a failure means
    def ask(group: Sequence[ClientId]) -> Iterator[tuple[ClientId, Update | Failure]]:
        for client, (sender, reply) in zip(group, exchange(round, group, request), strict=True):
            if sender != client:
                raise RuntimeError(f"the engine handed on a reply of {sender!r} where that of {client!r} was due")
            yield client, read(client, reply)

    def updates() -> Iterator[Update]:
        for client, answer in ask(chosen):
            for _ in range(config.retries if config.on_failure == "retry" else 0):
                if isinstance(answer, Update):
                    break
                failures.append(answer)
                ((_, answer),) = ask([client])
            if isinstance(answer, Update):
                used.append(replace(answer, adapter={}))
                if (alive := agreement.method.alive(answer.notes)) is not None:
                    ranks[client] = algebra.living(alive, agreement.initial)
                yield answer
            elif config.on_failure == "stop":
                raise ClientError(answer.stage, round, client, answer.reason)
            else:
                failures.append(answer)
        if not used:
            last = failures[-1]
            raise ClientError(last.stage, round, last.client, f"no client answered; {last.reason}")

    # server: the new global state, and what there is to know about the round
    new_state, error = server.close_round(state, chosen, updates(), agreement)
    return new_state, RoundRecord(
        round=round,
        clients=tuple(u.client for u in used),
        losses={u.client: u.loss for u in used},
        steps={u.client: u.steps for u in used},
        failures=tuple(failures),
        ledger=tuple(ledger),
        seconds=time.monotonic() - began,
        ranks=ranks,
        aggregation_error=error,
    )


def sample(clients: Sequence[ClientId], fraction: float, seed: int, round: int) -> list[ClientId]:
    """``sample_size`` clients, drawn without replacement and sorted by id."""
    drawn = stream(seed, "sample", round).permutation(len(clients))[: sample_size(len(clients), fraction)]
    return sorted(sorted(clients)[i] for i in drawn)


def sample_size(n_clients: int, fraction: float) -> int:
    """How many clients take part in a round: round(fraction * n), at least one."""
    return max(1, int(fraction * n_clients + 0.5))
