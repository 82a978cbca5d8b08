"""One turn with secure aggregation: keys, updates under masks, and what opens their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from capfl.errors import ClientError, WireError
from capfl.methods.secure import FEWEST
from capfl.roles import door, server, sums
from capfl.roles.agreement import Agreement
from capfl.roles.server import Beside
from capfl.roles.sums import MaskedSum
from capfl.talk import Talk
from capfl.types import ClientId, Failure, RoundRecord, ServerState

T = TypeVar("T")


def secure_turn(
    turn: Sequence[ClientId], talk: Talk, aggregation: server.Aggregation, record: RoundRecord
) -> list[Talk]:
    """Ask clients for keys, have those of each group train, and fold the sums that can be opened.

    A sum is lost where fewer than three of its clients have answered, where one of these does not open the masks of
    those who have not, or where it is no sum of honest updates. Against a malicious server it is of all who gave a key,
    and takes the answers of more than two thirds of them. ``record`` gets the means of losses and steps, for each
    client that is in one.

    Args:
        talk: to train.

    Returns:
        What was said before, in and after training.

    Raises:
        ClientError: a client failed and the policy is to stop, or there is no sum.
    """
    state, agreement = talk.state, talk.agreement
    keys, dealing, opening = (
        Talk(kind, state, agreement, talk.exchange, talk.config) for kind in ("keys", "shares", "open")
    )

    # a key of everybody
    offers = {said.client: said.offer for said in keys.ask(turn, sums.read_offered)}
    members: dict[str, list[ClientId]] = {}
    for client in sorted(offers):
        members.setdefault(state.group_name(client), []).append(client)
    sum_of: dict[ClientId, MaskedSum] = {}
    for group in members.values():
        sum_of |= dict.fromkeys(group, MaskedSum([offers[client] for client in group], state, agreement))
    asked = [client for client in turn if client in sum_of and len(sum_of[client].cohort) >= FEWEST]
    talk.beside = {client: Beside(sum_of[client].cohort) for client in asked}

    # shares of the secrets of everybody
    if agreement.shares:
        dealing.beside = talk.beside
        for dealt in dealing.replies(asked, _of(sum_of, sums.read_dealt)):
            sum_of[dealt.client].dealt[dealt.client] = dealt.shares
        asked = [client for client in asked if len(sum_of[client].dealt) == len(sum_of[client].cohort)]
        talk.beside = {client: Beside(shares=sum_of[client].shares_for(client)) for client in asked}

    # an update under masks
    for client, answer in talk.exchange("train", record.round, asked, talk.request):
        masked = talk.read(client, answer, _of(sum_of, sums.read_masked))
        if masked is not None:
            sum_of[client].add(masked)
    talk.require_all(asked)

    # what opens the sum
    opens = sorted(client for client, own in sum_of.items() if own.needs_opening and client in own.present)
    opening.beside = {client: Beside(gone=sum_of[client].gone) for client in opens}
    for said in opening.replies(opens, _of(sum_of, sums.read_opened)):
        sum_of[said.client].open(said)

    # the means
    for name, group in members.items():
        own = sum_of[group[0]]
        try:
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
    return [keys, dealing, talk, opening]


def _of(
    sum_of: dict[ClientId, MaskedSum],
    read: Callable[[bytes, ClientId, ServerState, Agreement, MaskedSum], tuple[T, dict[str, int]]],
) -> Callable[[bytes, ClientId, ServerState, Agreement], tuple[T, dict[str, int]]]:
    """Reads the reply of a client that is in one of the sums."""

    def reads(reply: bytes, client: ClientId, state: ServerState, agreement: Agreement) -> tuple[T, dict[str, int]]:
        return read(reply, client, state, agreement, sum_of[client])

    return reads
