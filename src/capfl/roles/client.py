"""The client's side of a round. The same function runs in a simulation and on a real site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from capfl.errors import WireError
from capfl.roles import Agreement
from capfl.types import Adapter, ClientId, ClientState, Update
from capfl.wire import decode_broadcast, encode_update

LocalTraining = Callable[[Adapter, int, int], tuple[Adapter, tuple[float, ...]]]
"""(start, round, steps taken before) -> (trained adapter, loss of every step)."""


@dataclass(frozen=True)
class Site:
    """One client and what it keeps to itself: its data, behind ``train``."""

    client: ClientId
    n_train: int
    train: LocalTraining


def handle(request: bytes, memory: ClientState, site: Site, agreement: Agreement) -> tuple[bytes, ClientState]:
    """Answer one broadcast: decode, install, train, collect, encode.

    Raises:
        WireError: the request does not fit or is for someone else. ``memory`` is untouched then.
        TrainingError: a loss is not finite.
    """
    method, codec, template = agreement.method, agreement.codec, agreement.initial
    told = decode_broadcast(request, codec, template)
    if told.client != site.client:
        raise WireError(f"client {site.client!r} received a message for {told.client!r}")
    start = method.install(told.adapter, memory)
    trained, losses = site.train(start, told.round, memory.steps)
    change, memory = method.collect(start, trained, memory)
    loss = sum(losses) / len(losses)
    update = Update(told.round, site.client, change, site.n_train, len(losses), loss)
    return encode_update(update, codec, template), replace(memory, steps=memory.steps + len(losses))
