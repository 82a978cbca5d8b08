"""The door: what an update may claim. One that claims more is refused, and its client has failed in this round."""

from __future__ import annotations

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.roles.agreement import Agreement
from capfl.roles.limits import Limits
from capfl.types import Introduction, ServerState, Update
from capfl.wire.summed import Mean


def admit(update: Update, state: ServerState, agreement: Agreement) -> float:
    """Check a decoded update of the round that follows ``state`` against all that a client can know and do.

    Returns the L2 norm of its change.

    Raises:
        WireError: it claims what cannot be; says what, and which key of the config sets the bound.
    """
    method, limits = agreement.method, agreement.limits

    # numbers in the header
    _admit_items(update.n_train, limits)
    if limits and update.steps > limits.train.steps_of(update.n_train):
        raise WireError(
            f"update says that it took {update.steps} steps, {update.n_train} items make "
            f"{limits.train.steps_of(update.n_train)}"
        )

    # the change: tensors and elements that this round's updates are of, and no longer than training makes it
    sent = method.factors.sent(update.round, agreement.initial)
    for name, t in update.adapter.items():
        if bool(t.any()) and name not in sent:
            raise WireError(f"update has {name!r}, which {method.name} does not send in round {update.round}")
    importance = method.ranks.of_client(state, update.client)
    reach = agreement.up.reach(update.adapter, agreement.initial, state.version + 1, importance)
    for name, t in update.adapter.items():
        if bool((t.bool() & ~reach[name]).any()):
            raise WireError(f"{name!r} has values where client {update.client!r} sends none in round {update.round}")
    norm = algebra.norm(update.adapter)
    if limits:
        longest = limits.longest(update.n_train, algebra.size(update.adapter), agreement.up.gain)
        if norm > longest:
            raise WireError(f"update has norm {norm:.6g}; federation.max_norm lets in {longest:.6g}")

    method.ranks.check(state, update)  # what it says beside the change
    return norm


def admit_mean(mean: Mean, agreement: Agreement) -> None:
    """Check the mean of a sum of updates: nothing else is known of them.

    Raises:
        WireError: it is longer than the mean of honest updates, or says of the ranks what cannot be.
    """
    agreement.method.ranks.check_mean(mean.ranks)
    limits = agreement.limits
    if limits and mean.steps is not None:  # otherwise it has noise, and reading the sum has bounded its length
        most = limits.train.steps or (limits.max_items and limits.train.steps_of(limits.max_items))
        steps = min(mean.steps, most or mean.steps)
        longest = limits.longest_of(steps, algebra.size(mean.change), agreement.up.gain)
        if (norm := algebra.norm(mean.change)) > longest:
            raise WireError(f"the mean update has norm {norm:.6g}; federation.max_norm lets in {longest:.6g}")


def admit_introduction(said: Introduction, agreement: Agreement) -> None:
    """Check what a client says that its data are like. Raises as ``admit``."""
    limits = agreement.limits
    _admit_items(said.n_train, limits)
    for name, length in (limits.described if limits else {}).items():
        vector = getattr(said.grouping, name, None)
        if vector is not None and len(vector) != length:
            raise WireError(f"its description has {len(vector)} numbers of {name}, expected {length}")
    agreement.method.grouping.check(said)


def _admit_items(n_train: int, limits: Limits | None) -> None:
    if limits and limits.max_items is not None and n_train > limits.max_items:
        raise WireError(f"it says that it has {n_train} training items, federation.max_items is {limits.max_items}")
