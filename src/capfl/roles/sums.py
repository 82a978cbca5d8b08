"""The server's side of secure aggregation: the sum of masked updates, and the masks of those who have not answered."""

from __future__ import annotations

from collections.abc import Sequence

from capfl.maths.masks import Whole, expanded
from capfl.roles.agreement import Agreement
from capfl.roles.keyring import sign_of
from capfl.roles.server import check_sender
from capfl.types import ClientId, Offer, ServerState
from capfl.wire.secure import Masked, Offered, Opened, decode_masked, decode_offered, decode_opened
from capfl.wire.summed import Mean


class MaskedSum:
    """The sum of the updates of some clients, whose masks cancel once all of them are in it, or are opened.

    Attributes:
        cohort: the keys of all who were asked.
        present: who has answered so far, in that order.
    """

    def __init__(self, cohort: Sequence[Offer], state: ServerState, agreement: Agreement) -> None:
        self.cohort = tuple(cohort)
        self.present: list[ClientId] = []
        importance = agreement.method.ranks.importance(state.ranks)
        self.summed = agreement.summed(state.round + 1, state.version + 1, len(self.cohort), importance)
        self._total: Whole | None = None

    @property
    def gone(self) -> tuple[ClientId, ...]:
        """Those who have not answered, by id."""
        return tuple(one.client for one in self.cohort if one.client not in self.present)

    def add(self, update: Masked) -> None:
        self._total = update.whole if self._total is None else self._total.plus(update.whole)
        self.present.append(update.client)

    def open(self, opened: Opened) -> None:
        """Take away the masks that one client shares with those who have not answered."""
        assert self._total is not None
        for other, secret in opened.secrets.items():
            mask = expanded(secret, self.summed.n_values, self.summed.width, self.summed.n_numbers)
            self._total = self._total.plus(mask, -sign_of(opened.client, other))

    def mean(self) -> Mean:
        """Of those present. Raises WireError: a mask is left, or somebody has sent what no update is."""
        assert self._total is not None
        return self.summed.mean(self._total, len(self.present))


def read_offered(
    reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
) -> tuple[Offered, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts.

    Raises:
        WireError: it does not fit, or belongs to another client or round.
    """
    offered, parts = decode_offered(reply, agreement.up, agreement.schema)
    check_sender(offered, client, state)
    return offered, parts


def read_masked(
    reply: bytes, client: ClientId, state: ServerState, agreement: Agreement, own: MaskedSum
) -> tuple[Masked, dict[str, int]]:
    """As ``read_offered``. ``own`` is the sum that the client is in."""
    masked, parts = decode_masked(reply, agreement.up, agreement.schema, own.summed)
    check_sender(masked, client, state)
    return masked, parts


def read_opened(
    reply: bytes, client: ClientId, state: ServerState, agreement: Agreement, own: MaskedSum
) -> tuple[Opened, dict[str, int]]:
    """As ``read_masked``."""
    opened, parts = decode_opened(reply, agreement.up, agreement.schema, own.gone)
    check_sender(opened, client, state)
    return opened, parts
