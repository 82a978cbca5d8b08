"""The client's side of a round. The same functions run in a simulation and on a real site."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from capfl import adapter as algebra
from capfl.errors import DataError, TrainingError, WireError
from capfl.methods.take_home import NearServer, Own
from capfl.roles.agreement import Agreement
from capfl.roles.keyring import Keyring
from capfl.types import (
    Adapter,
    Broadcast,
    ClientId,
    ClientState,
    Evaluation,
    HeldOut,
    Introduction,
    Kind,
    LocalSteps,
    Penalty,
    Score,
    SplitName,
    Trained,
    Update,
    Validation,
)  # fmt: skip
from capfl.wire import (
    compensate,
    decode_broadcast,
    encode_evaluation,
    encode_introduction,
    encode_update,
    encode_validation,
    receive,
    relay,
)  # fmt: skip
from capfl.wire.noised import Noised
from capfl.wire.secure import (
    Dealt,
    Done,
    Masked,
    Offered,
    Opened,
    encode_dealt,
    encode_done,
    encode_masked,
    encode_offered,
    encode_opened,
)  # fmt: skip

Answer = TypeVar("Answer")


def _nothing_to_score(split: SplitName, adapters: Mapping[str, Adapter]) -> dict[str, Score]:
    raise DataError(f"this client has no {split} items to score an adapter on")


@dataclass(frozen=True)
class Lot:
    """Clients of one process that may train together, because none of them needs what another learns in this turn.

    Attributes:
        size: most clients at once.
        train: what ``LocalTrainer.train`` gives for each of some clients, or what it raises.
    """

    size: int
    train: Callable[[Sequence[tuple[ClientId, LocalSteps]]], Sequence[Trained | TrainingError]]


@dataclass(frozen=True)
class LocalTrainer:
    """One client's data, behind the functions that need them.

    Attributes:
        n_train: items that it trains on.
        train: (start, round, steps taken before, what follows each step) -> what training leaves.
        describe: what its data are like: the record ``up`` of the method's grouping.
        score: adapters by name, on one split; on test items by the run's metrics, otherwise by what costs nothing more.
        test: how many test items there are.
        keep: puts the client's own adapter, at its ranks, where it belongs.
        keyring: its keys of secure aggregation, which live as long as its process.
        lot: trains it together with others; None: it always trains alone.
    """

    client: ClientId
    n_train: int
    train: Callable[[Adapter, int, int, Penalty | None], Trained]
    describe: Callable[[], object] | None = None
    score: Callable[[SplitName, Mapping[str, Adapter]], dict[str, Score]] = _nothing_to_score
    test: HeldOut = field(default_factory=HeldOut)
    keep: Callable[[Adapter], None] | None = None
    keyring: Keyring = field(default_factory=Keyring)
    lot: Lot | None = None


Training = Generator[LocalSteps, Trained, Answer]
"""A client that is being visited: yields the local steps that it needs, is sent what they lead to, and returns."""


def alone(training: Training[Answer], trainer: LocalTrainer) -> Answer:
    """What a client returns that takes its local steps by itself. Raises whatever it or its trainer does."""
    trained: Trained | None = None
    while True:
        try:
            steps = next(training) if trained is None else training.send(trained)
        except StopIteration as returned:
            answer: Answer = returned.value
            return answer
        trained = trainer.train(steps.start, steps.round, steps.first_step, steps.penalty)


def introduce(
    request: bytes, memory: ClientState, trainer: LocalTrainer, agreement: Agreement
) -> tuple[bytes, ClientState]:
    """Say what the client's data are like, as the run's method wants to know it. Raises as ``train``."""
    message, grouping = opened(request, trainer, agreement), agreement.method.grouping
    if not grouping.describes:
        raise WireError(f"clients of {agreement.method.name} do not say here what their data are like: configs differ")
    if trainer.describe is None:
        raise DataError("this client cannot describe its data")
    said = trainer.describe()
    reply = Introduction(message.round, trainer.client, trainer.n_train, said)
    memory = replace(memory, grouping=memory.grouping or grouping.described(said))
    return encode_introduction(reply, agreement.up, agreement.schema), memory


def train(
    request: bytes, memory: ClientState, trainer: LocalTrainer, agreement: Agreement
) -> tuple[bytes, ClientState]:
    """Answer a broadcast with an update: decode, train, compress, encode.

    Raises:
        WireError: the request does not fit or is for someone else. ``memory`` is untouched then.
        TrainingError: a loss is not finite.
    """
    return alone(training(request, memory, trainer, agreement), trainer)


def training(
    request: bytes, memory: ClientState, trainer: LocalTrainer, agreement: Agreement
) -> Training[tuple[bytes, ClientState]]:
    """As ``train``, and somebody else takes the local steps."""
    method, template = agreement.method, agreement.initial
    message = opened(request, trainer, agreement)
    silent = agreement.secure and method.says_nothing(trainer.client)
    if agreement.secure and not silent:
        trainer.keyring.check(message, agreement.schema)  # before a step is taken
    memory, number = received(message, memory, agreement), message.version + 1

    # local training, first of an adapter that never travels where the method has one
    if isinstance(method.takes_home, NearServer):
        near = method.takes_home.penalty(memory.known)
        own = yield LocalSteps(template | memory.adapter, message.round, memory.steps, near)
        memory = replace(memory, adapter=own.adapter)
    start = method.starting_point(memory, template)
    importance = method.ranks.importance(memory.ranks)  # of this round: training may change it
    trained = yield LocalSteps(start, message.round, memory.steps, method.penalty(memory, trainer.n_train))
    change = method.change(start, trained, message.round)
    memory = replace(
        memory,
        adapter=method.keeps(trained, memory),
        ranks=method.ranks.learn(trained, memory, trainer.n_train),
    )

    if agreement.keep_best and "personal" in agreement.scored:
        memory = with_best(memory, _own_model(memory, start, trained.adapter, agreement), trainer)

    n_steps, loss = len(trained.losses), sum(trained.losses) / len(trained.losses)
    memory = replace(
        memory,
        steps=memory.steps + n_steps,
        trained=message.round,
        known={} if agreement.always_whole else memory.known,  # the whole adapter will come again
        sent=b"",
    )
    if silent:
        return encode_done(Done(message.round, trainer.client), agreement.up, agreement.schema), memory
    if agreement.secure:
        summed = agreement.summed(message.round, number, trainer.keyring.clients, importance)
        whole = summed.whole(change, loss, n_steps, method.ranks.to_sum(memory), trainer.keyring.draw())
        noisy = isinstance(summed, Noised)
        hidden = trainer.keyring.hide(whole, message, agreement.schema, noisy)
        return encode_masked(Masked(message.round, trainer.client, hidden), agreement.up, agreement.schema), memory

    # the change, and with error feedback what earlier messages could not carry of theirs
    if agreement.up.compensation == "feedback":
        body, residual = compensate(change, memory.residual, agreement.up, template, number, importance)
    else:
        body, residual = agreement.up.encode(change, template, number, importance), {}
    passed_on = method.combine.passes_one and not agreement.down.exact
    memory = replace(memory, residual=residual, sent=relay([(trainer.n_train, body)]) if passed_on else b"")
    update = Update(
        message.round, trainer.client, {}, trainer.n_train, n_steps, loss, ranks=method.ranks.report(memory)
    )
    return encode_update(update, body, agreement.up, agreement.schema), memory


def offer_key(
    request: bytes, memory: ClientState, trainer: LocalTrainer, agreement: Agreement
) -> tuple[bytes, ClientState]:
    """Make a key that will hide the client's update of this round. Raises WireError: the request does not fit."""
    message = _opened_secure(request, trainer, agreement)
    once = agreement.items_protected
    offer = trainer.keyring.offer(message.round, trainer.client, agreement.schema, agreement.shares, once)
    return encode_offered(Offered(message.round, trainer.client, offer), agreement.up, agreement.schema), memory


def deal_shares(
    request: bytes, memory: ClientState, trainer: LocalTrainer, agreement: Agreement
) -> tuple[bytes, ClientState]:
    """Deal out shares of the secrets that will hide the client's update. Raises WireError: as ``Keyring.deal``."""
    message = _opened_secure(request, trainer, agreement)
    shares = trainer.keyring.deal(message, agreement.schema)
    return encode_dealt(Dealt(message.round, trainer.client, shares), agreement.up, agreement.schema), memory


def open_masks(
    request: bytes, memory: ClientState, trainer: LocalTrainer, agreement: Agreement
) -> tuple[bytes, ClientState]:
    """Say the secrets that are shared with those who have not answered, or shares of everybody's.

    Raises:
        WireError: the request does not fit, or asks for more than that (``Keyring.open``).
    """
    message = _opened_secure(request, trainer, agreement)
    ring = trainer.keyring
    secrets = ring.open(message.round, message.gone, agreement.fewest(ring.clients))
    return encode_opened(Opened(message.round, trainer.client, secrets), agreement.up, agreement.schema), memory


def _opened_secure(request: bytes, trainer: LocalTrainer, agreement: Agreement) -> Broadcast:
    if not agreement.secure:
        raise WireError("a key was asked for, and this run has no secure aggregation: the sites' configs differ")
    return opened(request, trainer, agreement)


def validate(
    request: bytes, memory: ClientState, trainer: LocalTrainer, agreement: Agreement
) -> tuple[bytes, ClientState]:
    """Score the newest adapter of its group on the client's validation items.

    The client remembers the version, so that it need not be sent again. Records mean nothing to it before it has
    trained for the first time. Raises as ``train``.
    """
    if agreement.secure:
        raise WireError("a score of its own was asked for, and with secure aggregation a client says none")
    message = opened(request, trainer, agreement)
    heard = received(message, memory, agreement)
    memory = heard if memory.trained else replace(heard, grouping=memory.grouping, ranks=memory.ranks)
    scores = trainer.score("validation", {"global": agreement.whole(memory.known)})
    reply = Validation(message.round, trainer.client, scores["global"])
    return encode_validation(reply, agreement.up, agreement.schema), memory


def evaluate(
    request: bytes, memory: ClientState, trainer: LocalTrainer, agreement: Agreement
) -> tuple[bytes, ClientState]:
    """Make the client's own model after the last round, keep it, and score all models on the client's test items.

    With secure aggregation the scores go into a sum. Nothing is remembered: asked again, the client does the same
    again. Raises as ``train``.
    """
    message = opened(request, trainer, agreement)
    if agreement.secure:
        trainer.keyring.check(message, agreement.schema)
    heard = received(message, memory, agreement)
    own = personal(heard, message.round, trainer, agreement)
    if own is not None and agreement.keep_best:
        own = with_best(heard, own, trainer).best
    kept = agreement.initial if own is None else algebra.pruned(own)
    if own is not None and trainer.keep is not None:
        trainer.keep(kept)
    there = {"base": agreement.initial, "global": agreement.whole(heard.known), "personal": own}  # B = 0: the base
    scores = trainer.score("test", {model: a for model in agreement.scored if (a := there[model]) is not None})
    reply = Evaluation(message.round, trainer.client, trainer.n_train, trainer.test, scores, algebra.ranks(kept))
    if agreement.secure:
        whole = agreement.totals(trainer.keyring.clients).whole(reply)
        hidden = trainer.keyring.hide(whole, message, agreement.schema)
        return encode_masked(Masked(message.round, trainer.client, hidden), agreement.up, agreement.schema), memory
    return encode_evaluation(reply, agreement.up, agreement.schema, agreement.initial, agreement.metrics), memory


ANSWERS: dict[Kind, Callable[[bytes, ClientState, LocalTrainer, Agreement], tuple[bytes, ClientState]]] = {
    "introduce": introduce,
    "keys": offer_key,
    "shares": deal_shares,
    "train": train,
    "open": open_masks,
    "validate": validate,
    "evaluate": evaluate,
}
"""What a client does when it is asked: (request, memory, trainer, agreement) -> (reply, what it remembers then)."""


def opened(request: bytes, trainer: LocalTrainer, agreement: Agreement) -> Broadcast:
    """The broadcast that a client was sent.

    Raises:
        WireError: it does not fit or is for someone else.
    """
    message = decode_broadcast(request, agreement.down, agreement.schema, agreement.records_down)
    if message.client != trainer.client:
        raise WireError(f"client {trainer.client!r} received a message for {message.client!r}")
    return message


def received(message: Broadcast, memory: ClientState, agreement: Agreement) -> ClientState:
    """The memory of a client that has the newest version, and what the server says beside it."""
    memory = receive(message, memory, agreement.next_version, agreement.template, agreement.version_0)
    method = agreement.method
    memory = replace(memory, grouping=method.grouping.remember(message.grouping, memory))
    return replace(memory, ranks=method.ranks.remember(message.ranks, memory))


def personal(memory: ClientState, round: int, trainer: LocalTrainer, agreement: Agreement) -> Adapter | None:
    """The client's own model: what it takes home, without the ranks that it does not use."""
    method = agreement.method
    if "personal" not in agreement.scored:
        return None
    if isinstance(method.takes_home, Own | NearServer):
        return _own_model(memory, {}, {}, agreement)
    start = method.without_unused_ranks(method.starting_point(memory, agreement.initial), memory)
    trained = trainer.train(start, round, memory.steps, method.penalty(memory, trainer.n_train)).adapter
    return _own_model(memory, start, trained, agreement)


def _own_model(memory: ClientState, start: Adapter, trained: Adapter, agreement: Agreement) -> Adapter:
    """What the client takes home of local steps that led from ``start`` to ``trained``, and that it remembers."""
    method, takes = agreement.method, agreement.method.takes_home
    if isinstance(takes, Own | NearServer):
        return method.without_unused_ranks(agreement.initial | memory.adapter, memory)
    share = 1.0 if method.grouping.is_alone(memory) else takes.share
    return method.without_unused_ranks(algebra.between(start, trained, share), memory)


def with_best(memory: ClientState, own: Adapter, trainer: LocalTrainer) -> ClientState:
    """The memory with ``own`` as the best of the client's own models so far, if it is that on its validation items."""
    loss = trainer.score("validation", {"personal": own})["personal"].loss.mean
    if memory.best_loss is not None and not loss < memory.best_loss:
        return memory
    return replace(memory, best=own, best_loss=math.inf if math.isnan(loss) else loss)
