"""The end of a run: every model on every client's own test items, and the adapters on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from capfl import adapter as algebra
from capfl.checkpoint import ClientStore
from capfl.errors import ClientError, TrainingError
from capfl.federation import Federation
from capfl.methods import Method
from capfl.model.export import save_adapter
from capfl.report.summary import ClientRow, Summary
from capfl.roles import Agreement, server
from capfl.roles.client import described, hear, penalty, starting_point
from capfl.types import Adapter, ClientId, ClientState, Entry, RoundRecord, ServerState
from capfl.wire import decode_broadcast


@dataclass(frozen=True)
class Finished:
    """A method after its last round."""

    state: ServerState
    store: ClientStore
    agreement: Agreement
    records: Sequence[RoundRecord]


def evaluate(method: Method, finished: Mapping[str, Finished], federation: Federation, path: Path) -> Summary:
    """Score base, global, personal and reference models, save their adapters, and sum up.

    Every model has taken the same number of optimiser steps on a client's items: where the method's personal
    model is the global adapter after one more round of local steps, the local-only one takes them as well.
    """
    main = finished[method.name]
    config = federation.config
    peft_config = federation.model.peft_config()
    last = main.state.round + 1
    ledger = [entry for record in main.records for entry in record.ledger]
    if method.has_global:
        save_adapter(main.state.whole, peft_config, path / "adapters" / "global")

    def after_local_steps(of: Finished, memory: ClientState, start: Adapter) -> Adapter:
        try:
            site = federation.site(memory.client, of.agreement.method)
            return site.train(start, last, memory.steps, penalty(memory, of.agreement)).adapter
        except TrainingError as error:
            raise ClientError("personal model", last, memory.client, str(error)) from error

    def deliver(client: ClientId) -> ClientState:
        agreed = main.agreement
        message = server.request(main.state, client, agreed)
        ledger.append(Entry(last, client, "down", len(message.blob), message.parts))
        told = decode_broadcast(message.blob, agreed.down, agreed.schema, agreed.method.kinds)
        memory = hear(told, main.store.load(client, before=last), agreed)
        return described(memory, federation.site(client, method), method)

    def personal(memory: ClientState) -> Adapter | None:
        if not config.evaluation.personal:
            return None
        if method.personal:
            return method.personal(memory)
        start = method.settle(starting_point(memory, main.agreement), memory)
        share = method.mix(memory) if config.evaluation.mix is None else config.evaluation.mix
        return algebra.between(start, after_local_steps(main, memory, start), share)

    def local_only(client: ClientId) -> Adapter | None:
        if "local" not in finished:
            return None
        alone = finished["local"].store.load(client, before=last)
        more = config.evaluation.personal and not method.pooled and method.personal is None
        return after_local_steps(finished["local"], alone, alone.adapter) if more else alone.adapter

    def row(client: ClientId) -> ClientRow:
        def accuracy(adapter: Adapter | None) -> float | None:
            return None if adapter is None else federation.score(client, "test", adapter).accuracy

        own = None if method.pooled else personal(deliver(client))
        kept = main.agreement.initial if own is None else algebra.pruned(own)
        if own is not None:
            save_adapter(kept, peft_config, path / "adapters" / "clients" / client)
        own_messages = [e for e in ledger if e.client == client]
        central = finished["centralised"].state.adapter if "centralised" in finished else None
        base = federation.score(client, "test", main.agreement.initial)  # B = 0: the base model itself
        return ClientRow(
            id=client,
            n_train=len(federation.splits[client].train),
            n_test=len(federation.splits[client].test[: config.evaluation.max_items]),
            base=base.accuracy,
            global_=accuracy(main.state.whole if method.has_global else None),
            personal=accuracy(own),
            local_only=accuracy(local_only(client)),
            centralised=accuracy(central),
            rank=fmean(algebra.ranks(kept).values()),
            ranks=algebra.ranks(kept),
            chance=federation.chance(client),
            majority=federation.majority(client),
            bytes_up=sum(e.bytes for e in own_messages if e.direction == "up"),
            bytes_down=sum(e.bytes for e in own_messages if e.direction == "down"),
        )

    rows = tuple(row(client) for client in federation.clients)
    for client in federation.participants(method) if method.pooled else ():
        deliver(client)
    cache = federation.cache
    return Summary(
        method=method.name,
        metric="accuracy" if rows[0].chance is not None else "token_accuracy",
        rounds=main.state.round,
        rows=rows,
        ledger=tuple(ledger),
        failures=sum(len(record.failures) for record in main.records),
        cache={"computed": cache.computed, "reused": cache.reused, "bytes": cache.used_bytes},
        seconds=0.0,
    )
