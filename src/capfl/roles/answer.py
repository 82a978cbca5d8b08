"""What a client does when it is asked: it trains for a round, or scores the adapters that there are."""

from __future__ import annotations

from capfl import adapter as algebra
from capfl.roles import Agreement
from capfl.roles.client import Site, aging, described, effective, handle, hear, opened, penalty, starting_point
from capfl.types import Adapter, ClientState, Evaluation, Kind, Validation
from capfl.wire import encode_evaluation, encode_validation, receive


def answer(
    kind: Kind, request: bytes, memory: ClientState, site: Site, agreement: Agreement
) -> tuple[bytes, ClientState]:
    """The reply to one request, whatever it asks for, and what the client remembers of it.

    Raises:
        WireError: the request does not fit or is for someone else. ``memory`` is untouched then.
        TrainingError: a loss is not finite.
    """
    return {"train": handle, "validate": validate, "evaluate": evaluate}[kind](request, memory, site, agreement)


def validate(request: bytes, memory: ClientState, site: Site, agreement: Agreement) -> tuple[bytes, ClientState]:
    """Score the newest version of the global adapter on the client's validation items.

    The client remembers the version, so that it need not be sent again. Its residual ages when it trains, and notes
    mean nothing to it before it has trained for the first time.
    """
    told = opened(request, site, agreement)
    if memory.trained:
        memory = hear(told, memory, agreement)
    else:
        memory = receive(told, memory, agreement.lead, agreement.template, agreement.version_0)
    score = site.score("validation", agreement.whole(memory.known))
    return encode_validation(Validation(told.round, site.client, score), agreement.up, agreement.schema), memory


def evaluate(request: bytes, memory: ClientState, site: Site, agreement: Agreement) -> tuple[bytes, ClientState]:
    """Make the client's own model after the last round, keep it, and score all models on the client's test items.

    Nothing is remembered: asked again, the client does the same again.
    """
    told = opened(request, site, agreement)
    heard = described(aging(hear(told, memory, agreement), told.round, agreement), site, agreement.method)
    own = personal(heard, told.round, site, agreement)
    kept = agreement.initial if own is None else algebra.pruned(own)
    if own is not None and site.keep is not None:
        site.keep(kept)
    there = {
        "base": agreement.initial,
        "global": agreement.whole(heard.known),
        "personal": own,
    }  # B = 0: the base itself
    scores = {model: site.score("test", a) for model in agreement.scored if (a := there[model]) is not None}
    reply = Evaluation(told.round, site.client, site.n_train, site.test, scores, algebra.ranks(kept))
    return encode_evaluation(reply, agreement.up, agreement.schema, agreement.initial), memory


def personal(memory: ClientState, round: int, site: Site, agreement: Agreement) -> Adapter | None:
    """The client's own model: the method's, or the global adapter some way to where a round of local steps leads."""
    method = agreement.method
    if "personal" not in agreement.scored:
        return None
    if method.personal:
        return method.personal(memory)
    start = method.settle(starting_point(memory, agreement), memory)
    trained = site.train(start, round, memory.steps, penalty(memory, agreement)).adapter
    mixed = algebra.between(start, trained, method.mix(memory) if agreement.mix is None else agreement.mix)
    return effective(method.settle(mixed, memory), memory, agreement)  # a proximal term pulls dropped ranks back
