"""One turn with secure aggregation: keys, updates under masks, and the masks of those who have not answered."""

from __future__ import annotations

from collections.abc import Sequence

from capfl.errors import ClientError, WireError
from capfl.methods.secure import FEWEST
from capfl.roles import door, server, sums
from capfl.roles.agreement import Agreement
from capfl.roles.sums import MaskedSum
from capfl.talk import Talk
from capfl.types import ClientId, Failure, RoundRecord, ServerState
from capfl.wire.secure import Masked, Opened


def secure_turn(
    turn: Sequence[ClientId], talk: Talk, aggregation: server.Aggregation, record: RoundRecord
) -> tuple[Talk, Talk]:
    """Ask clients for keys, have those of each group train, and fold the sums that can be opened.

    A sum is lost where fewer than three of its clients have answered, where one of these does not open the masks of
    those who have not, or where it is no sum of honest updates. ``record`` gets the means of losses and steps, for each
    client that is in one.

    Args:
        talk: to train. Its cohorts are set here.

    Returns:
        What was said before and after training.

    Raises:
        ClientError: a client failed and the policy is to stop, or there is no sum.
    """
    state, agreement = talk.state, talk.agreement
    keys, opening = (Talk(kind, state, agreement, talk.exchange, talk.config) for kind in ("keys", "open"))

    # a key of everybody
    offers = {said.client: said.offer for said in keys.ask(turn, sums.read_offered)}
    members: dict[str, list[ClientId]] = {}
    for client in sorted(offers):
        members.setdefault(state.group_name(client), []).append(client)
    sum_of: dict[ClientId, MaskedSum] = {}
    for group in members.values():
        sum_of |= dict.fromkeys(group, MaskedSum([offers[client] for client in group], state, agreement))
    trained = [client for client in turn if client in sum_of and len(sum_of[client].cohort) >= FEWEST]
    talk.cohorts = {client: sum_of[client].cohort for client in trained}

    # an update under masks
    def read_masked(
        reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
    ) -> tuple[Masked, dict[str, int]]:
        return sums.read_masked(reply, client, state, agreement, sum_of[client])

    for client, answer in talk.exchange("train", record.round, trained, talk.request):
        masked = talk.read(client, answer, read_masked)
        if masked is not None:
            sum_of[client].add(masked)
    talk.require_all(trained)

    # where somebody has not answered, the masks that the others share with them
    def read_opened(
        reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
    ) -> tuple[Opened, dict[str, int]]:
        return sums.read_opened(reply, client, state, agreement, sum_of[client])

    opening.gone = {
        client: own.gone
        for client, own in sum_of.items()
        if own.gone and client in own.present and len(own.present) >= FEWEST
    }
    opened = set[ClientId]()
    for said in opening.replies(sorted(opening.gone), read_opened):
        sum_of[said.client].open(said)
        opened.add(said.client)

    # the means
    for name, group in members.items():
        own = sum_of[group[0]]
        try:
            _require(own, opened)
            mean = own.mean()
            door.admit_mean(mean, agreement)
        except WireError as error:
            lost = [Failure(client, "sum", str(error), error.code) for client in own.present or group]
            if talk.config.on_failure == "stop":
                raise ClientError("sum", record.round, lost[0].client, str(error)) from error
            talk.failures += lost
            continue
        aggregation.add_mean(name, own.present, mean.change)
        record.losses.update(dict.fromkeys(own.present, mean.loss))
        record.steps.update(dict.fromkeys(own.present, round(mean.steps)))
    if not record.losses:
        last = talk.failures[-1]
        raise ClientError(last.stage, record.round, last.client, f"there is no sum of updates; {last.reason}")
    aggregation.end_turn(asked=turn)
    return keys, opening


def _require(own: MaskedSum, opened: set[ClientId]) -> None:
    """Raises WireError: the sum may not be opened, or cannot be."""
    if len(own.present) < FEWEST:
        raise WireError(
            f"{len(own.present)} of {len(own.cohort)} clients have sent an update; in a sum of fewer than {FEWEST} "
            "each would learn another's change"
        )
    if own.gone and (silent := sorted(set(own.present) - opened)):
        raise WireError(f"{', '.join(silent)} did not open the masks of {', '.join(own.gone)}, so the sum is lost")
