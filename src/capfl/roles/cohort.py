"""Sums with secure aggregation: keys, what clients say under masks, and what opens the sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from capfl.errors import ClientError, WireError
from capfl.methods.secure import FEWEST
from capfl.roles import door, server, sums
from capfl.roles.agreement import Agreement
from capfl.roles.server import Beside
from capfl.roles.sums import AnySum, MaskedSum, Summable
from capfl.roles.talk import Talk
from capfl.types import ClientId, Failure, Kind, RoundRecord, ServerState
from capfl.wire.summed import Summed
from capfl.wire.totals import Total

T = TypeVar("T")


def secure_turn(
    turn: Sequence[ClientId], talk: Talk, aggregation: server.Aggregation, record: RoundRecord
) -> list[Talk]:
    """Have clients train, and fold the sums of those groups that can be opened.

    A sum is lost where fewer than three of its clients have answered, where one of these does not open the masks of
    those who have not, or where it is no sum of honest updates. Against a malicious server it is of all who gave a key,
    and takes the answers of more than two thirds of them. Whoever learns with nobody says that it has trained, and no
    more. ``record`` gets the means of losses and steps, for each client that is in a sum that has them.

    Args:
        talk: to train.

    Returns:
        What was said before, in and after training.

    Raises:
        ClientError: a client failed and the policy is to stop, or there is no sum.
    """
    state, agreement = talk.state, talk.agreement
    importance = agreement.method.ranks.importance(state.ranks)
    silent: list[ClientId] = []
    groups: dict[str, list[ClientId]] = {}
    for client in turn:
        if agreement.method.says_nothing(client):
            silent.append(client)
        else:
            groups.setdefault(state.group_name(client), []).append(client)

    def summed(clients: int) -> Summed:
        return agreement.summed(state.round + 1, state.version + 1, clients, importance)

    sums_of, done, talks = masked_sums(talk, groups, summed, silent)
    for client in done:
        aggregation.add_silent(client)
    used = 0
    for name, own in sums_of.items():
        try:
            mean = own.summed.mean(own.total(), len(own.present))
            door.admit_mean(mean, agreement)
        except WireError as error:
            lost = [Failure(client, "sum", str(error), error.code) for client in own.present or groups[name]]
            if talk.config.on_failure == "stop":
                raise ClientError("sum", record.round, lost[0].client, str(error)) from error
            talk.failures += lost
            continue
        aggregation.add_mean(name, own.present, mean)
        used += 1
        if mean.loss is not None and mean.steps is not None:
            if not agreement.items_protected:
                record.losses.update(dict.fromkeys(own.present, mean.loss))
            record.steps.update(dict.fromkeys(own.present, round(mean.steps)))
    if groups and not used:
        last = talk.failures[-1]
        raise ClientError(last.stage, record.round, last.client, f"there is no sum of updates; {last.reason}")
    aggregation.end_turn(asked=turn)
    return talks


def secure_scores(
    clients: Sequence[ClientId], talk: Talk, answered: Callable[[ClientId], None]
) -> tuple[Total, list[Talk]]:
    """Have clients score their models, and add up what they say, all in one sum.

    Args:
        talk: to evaluate.
        answered: is told of each client that has answered.

    Raises:
        ClientError: as ``secure_turn``.
    """
    found, _, talks = masked_sums(talk, {"": clients}, talk.agreement.totals, answered=answered)
    own = found[""]
    try:
        return own.summed.read(own.total(), len(own.present)), talks
    except WireError as error:
        raise ClientError("sum", talk.round, clients[0], f"there is no sum of scores; {error}") from error


def masked_sums(
    talk: Talk,
    groups: Mapping[str, Sequence[ClientId]],
    summed: Callable[[int], Summable],
    silent: Sequence[ClientId] = (),
    answered: Callable[[ClientId], None] = lambda client: None,
) -> tuple[dict[str, MaskedSum[Summable]], list[ClientId], list[Talk]]:
    """Ask clients for keys, have those of each group answer under masks, and ask for what opens the sums.

    Args:
        talk: of the request whose answers are summed.
        groups: the clients of each sum.
        summed: how the answers of so many become numbers.
        silent: clients that are asked as well, and say no more than that they are done.
        answered: is told of each client that has answered or failed.

    Returns:
        The sum of each group in which somebody gave a key, who of the silent ones is done, and what was said before, in
        and after the request.

    Raises:
        ClientError: a client failed and the policy is to stop, or nobody gave a key.
    """
    state, agreement = talk.state, talk.agreement
    kinds: tuple[Kind, ...] = ("keys", "shares", "open")
    keys, dealing, opening = (Talk(kind, state, agreement, talk.exchange, talk.config) for kind in kinds)

    # a key of everybody
    hidden = sorted(client for group in groups.values() for client in group)
    offers = {said.client: said.offer for said in keys.ask(hidden, sums.read_offered)} if hidden else {}
    found: dict[str, MaskedSum[Summable]] = {}
    sum_of: dict[ClientId, MaskedSum[Summable]] = {}
    for name, group in groups.items():
        if cohort := [offers[client] for client in sorted(group) if client in offers]:
            found[name] = MaskedSum(cohort, summed(len(cohort)), state, agreement)
            sum_of |= {one.client: found[name] for one in cohort}
    asked: list[ClientId] = [client for client in hidden if client in sum_of and len(sum_of[client].cohort) >= FEWEST]
    talk.beside = {client: Beside(sum_of[client].cohort) for client in asked}

    # shares of the secrets of everybody
    if agreement.shares:
        dealing.beside = talk.beside
        for dealt in dealing.replies(asked, _of(sum_of, sums.read_dealt)):
            sum_of[dealt.client].dealt[dealt.client] = dealt.shares
        asked = [client for client in asked if len(sum_of[client].dealt) == len(sum_of[client].cohort)]
        talk.beside = {client: Beside(shares=sum_of[client].shares_for(client)) for client in asked}

    # what is summed, under masks
    everybody, done = sorted([*asked, *silent]), list[ClientId]()
    for client, answer in talk.exchange(talk.kind, talk.round, everybody, talk.request):
        if client in sum_of:
            if (masked := talk.read(client, answer, _of(sum_of, sums.read_masked))) is not None:
                sum_of[client].add(masked)
        elif talk.read(client, answer, sums.read_done) is not None:
            done.append(client)
        answered(client)
    talk.require_all(everybody)

    # what opens the sums
    opens = sorted(client for client, own in sum_of.items() if own.needs_opening and client in own.present)
    opening.beside = {client: Beside(gone=sum_of[client].gone) for client in opens}
    for said in opening.replies(opens, _of(sum_of, sums.read_opened)):
        sum_of[said.client].open(said)
    return found, done, [keys, dealing, talk, opening]


def _of(
    sum_of: Mapping[ClientId, MaskedSum[Summable]],
    read: Callable[[bytes, Agreement, AnySum], tuple[T, dict[str, int]]],
) -> Callable[[bytes, ClientId, ServerState, Agreement], tuple[T, dict[str, int]]]:
    """Reads the reply of a client that is in one of the sums."""

    def reads(reply: bytes, client: ClientId, state: ServerState, agreement: Agreement) -> tuple[T, dict[str, int]]:
        return read(reply, agreement, sum_of[client])

    return reads
