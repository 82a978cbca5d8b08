"""The client's side of a round. The same function runs in a simulation and on a real site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from capfl import adapter as algebra
from capfl.errors import DataError, WireError
from capfl.methods.base import Method
from capfl.roles import Agreement, spent_on
from capfl.types import (
    Adapter,
    Broadcast,
    ClientId,
    ClientState,
    HeldOut,
    Notes,
    Penalty,
    Score,
    SplitName,
    Trained,
    Update,
)  # fmt: skip
from capfl.wire import aged, compensate, decode_broadcast, encode_update, receive


def _nothing_to_score(split: SplitName, adapter: Adapter) -> Score:
    raise DataError(f"this site has no {split} items to score an adapter on")


LocalTraining = Callable[[Adapter, int, int, Penalty | None], Trained]
"""(start, round, steps taken before, term added to the loss) -> what it leaves."""


@dataclass(frozen=True)
class Site:
    """One client and what it keeps to itself: its data, behind ``train`` and ``score``."""

    client: ClientId
    n_train: int
    train: LocalTraining
    describe: Callable[[], Notes] | None = None
    """Notes ``features`` (3 d,), ``deviation`` (d,), ``answers`` and ``items`` (1,): ``model.features.Description``."""
    score: Callable[[SplitName, Adapter], Score] = _nothing_to_score
    test: HeldOut = field(default_factory=HeldOut)
    keep: Callable[[Adapter], None] | None = None  # puts the client's own adapter, at its ranks, where it belongs


def handle(request: bytes, memory: ClientState, site: Site, agreement: Agreement) -> tuple[bytes, ClientState]:
    """Answer one broadcast: decode, install, train, collect, compensate, encode.

    Raises:
        WireError: the request does not fit or is for someone else. ``memory`` is untouched then.
        TrainingError: a loss is not finite.
    """
    method, template = agreement.method, agreement.initial

    # what the server says: the newest version of the global adapter
    told = opened(request, site, agreement)
    memory = described(aging(hear(told, memory, agreement), told.round, agreement), site, method)

    # local training, first of an adapter that never travels where the method has one
    if method.private:
        own, near = method.private(memory.known, memory)
        memory = replace(memory, adapter=site.train(own, told.round, memory.steps, near).adapter)
    spent = spent_on(memory.notes, method)
    start = starting_point(memory, agreement)
    trained = site.train(start, told.round, memory.steps, penalty(memory, agreement))
    change, memory = method.collect(start, trained, memory)

    # what the client says: the change, and what earlier messages could not carry of theirs
    if agreement.up.compensation == "feedback":
        body, residual = compensate(change, memory.residual, agreement.up, template, told.round, **spent)
    else:
        body, residual = agreement.up.encode(change, template, told.round, **spent), {}
    loss = sum(trained.losses) / len(trained.losses)
    notes = method.report(memory) if method.report else {}
    update = Update(told.round, site.client, {}, site.n_train, len(trained.losses), loss, notes)
    memory = replace(
        memory,
        steps=memory.steps + len(trained.losses),
        known={} if agreement.always_whole else memory.known,  # the whole adapter will come again
        residual=residual,
        trained=told.round,
    )
    return encode_update(update, body, agreement.up, agreement.schema, method.kinds), memory


def described(memory: ClientState, site: Site, method: Method) -> ClientState:
    """The memory of a client that has looked at its own data, if its method asks for that: once."""
    if not method.describes or not site.describe or "features" in memory.notes:
        return memory
    return replace(memory, notes=memory.notes | site.describe())


def opened(request: bytes, site: Site, agreement: Agreement) -> Broadcast:
    """The broadcast that a client was sent.

    Raises:
        WireError: it does not fit or is for someone else.
    """
    told = decode_broadcast(request, agreement.down, agreement.schema, agreement.method.kinds)
    if told.client != site.client:
        raise WireError(f"client {site.client!r} received a message for {told.client!r}")
    return told


def hear(told: Broadcast, memory: ClientState, agreement: Agreement) -> ClientState:
    """The memory of a client that has been told the newest version."""
    memory = receive(told, memory, agreement.lead, agreement.template, agreement.version_0)
    return agreement.method.heed(told.notes, memory) if agreement.method.heed else memory


def aging(memory: ClientState, round: int, agreement: Agreement) -> ClientState:
    """The memory in a round, whose residual has aged by the rounds since the client last trained."""
    age = max(0, round - memory.trained)  # 0: a server that lost its last rounds
    codec = agreement.codec
    return replace(memory, residual=aged(memory.residual, age, codec.residual_decay, codec.residual_rounds))


def starting_point(memory: ClientState, agreement: Agreement) -> Adapter:
    """Where local training starts: from what the method makes of the global adapter, plus a share of the residual.

    Xu et al., Step-Ahead Error Feedback for Distributed Training with Compressed Gradient, arXiv:2008.05823. A client
    that does not see its own pending changes would make them again. One that goes on from its own adapter sees them.
    """
    start = agreement.method.install(memory.known, memory)
    ahead = agreement.codec.step_ahead if start is not memory.adapter else 0.0
    return algebra.add(start, {name: ahead * t for name, t in memory.residual.items()}) if ahead else start


def penalty(memory: ClientState, agreement: Agreement) -> Penalty | None:
    """What the method adds to the local loss of a client with this memory."""
    return agreement.method.penalty(memory.known, memory) if agreement.method.penalty else None


def effective(adapter: Adapter, memory: ClientState, agreement: Agreement) -> Adapter:
    """An adapter of this client as a model without gates has to have it: the gate of its training goes into B."""
    term = penalty(memory, agreement)
    return algebra.gated(adapter, term.gate) if term else adapter
