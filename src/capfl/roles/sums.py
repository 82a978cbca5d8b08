"""The server's side of secure aggregation: the sum of masked numbers, and the masks of those who have not answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from capfl.errors import WireError
from capfl.maths.masks import KEY, PrivateKey, Whole, masked
from capfl.maths.shares import SHARE, joined
from capfl.roles.agreement import Agreement
from capfl.roles.keyring import context_of, sign_of
from capfl.types import ClientId, Offer, ServerState
from capfl.wire.secure import (
    Dealt,
    Done,
    Masked,
    Offered,
    Opened,
    decode_dealt,
    decode_done,
    decode_masked,
    decode_offered,
    decode_opened,
)  # fmt: skip
from capfl.wire.summed import Summed
from capfl.wire.totals import Totals

Summable = TypeVar("Summable", Summed, Totals)


class MaskedSum(Generic[Summable]):
    """The sum of some clients' numbers under masks, which cancel once all clients are in it or masks are opened.

    Args:
        summed: how what clients say becomes numbers.

    Attributes:
        cohort: the keys of all who were asked.
        present: who has answered so far, in that order.
        fewest: so many must be present.
    """

    def __init__(self, cohort: Sequence[Offer], summed: Summable, state: ServerState, agreement: Agreement) -> None:
        self.cohort = tuple(cohort)
        self.summed: Summable = summed
        self.present: list[ClientId] = []
        self.dealt: dict[ClientId, Sequence[bytes]] = {}
        self._shares = agreement.shares
        self.fewest = agreement.fewest(len(self.cohort))
        self._context = context_of(agreement.schema, state.round + 1, state.version)
        self._total: Whole | None = None
        self._opened: dict[ClientId, Mapping[ClientId, bytes]] = {}

    @property
    def gone(self) -> tuple[ClientId, ...]:
        """Those who have not answered, by id."""
        return tuple(one.client for one in self.cohort if one.client not in self.present)

    @property
    def needs_opening(self) -> bool:
        """Do clients have to say more before there is a sum?"""
        return len(self.present) >= self.fewest and (self._shares or bool(self.gone))

    @property
    def asked_about(self) -> tuple[ClientId, ...]:
        """The clients whose secrets, or shares of them, are said by everybody who opens the sum; by id."""
        return tuple(one.client for one in self.cohort) if self._shares else self.gone

    def shares_for(self, client: ClientId) -> tuple[bytes, ...]:
        """What all others have sealed for a client, in the order of their ids."""
        ids = [one.client for one in self.cohort]
        return tuple(
            self.dealt[other][[one for one in ids if one != other].index(client)] for other in ids if other != client
        )

    def add(self, update: Masked) -> None:
        self._total = update.whole if self._total is None else self._total.plus(update.whole)
        self.present.append(update.client)

    def open(self, opened: Opened) -> None:
        """Take what one client has said of others."""
        self._opened[opened.client] = opened.secrets

    def total(self) -> Whole:
        """The sum of those present, without any mask.

        Raises:
            WireError: too few are present or have opened their masks, or their shares are wrong.
        """
        if len(self.present) < self.fewest:
            raise WireError(
                f"{len(self.present)} of {len(self.cohort)} clients have answered; a sum is of {self.fewest} at least, "
                "so that nobody can tell another's part"
            )
        silent = [client for client in self.present if client not in self._opened]
        enough = len(self._opened) >= self.fewest if self._shares else not silent
        if self.needs_opening and not enough:
            raise WireError(f"{', '.join(silent)} did not open the masks of {', '.join(self.asked_about)}")
        assert self._total is not None
        return masked(self._total, ((secret, -sign) for secret, sign in self._masks()))

    def _masks(self) -> Iterator[tuple[bytes, int]]:
        """Every mask that is left in the sum: what it is made of, and its sign."""
        if not self._shares:
            for client, secrets in self._opened.items():
                yield from ((secret, sign_of(client, other)) for other, secret in secrets.items())
            return
        number = {one.client: i for i, one in enumerate(self.cohort, 1)}
        public = {one.client: one.key for one in self.cohort}
        for client in number:
            said = {number[other]: secrets[client] for other, secrets in self._opened.items()}
            try:
                secret = joined(said)
                if client in self.present:
                    yield secret, 1
                    continue
                key = PrivateKey(secret)
                if key.public != public[client]:
                    raise ValueError("they give another key")
            except ValueError as error:
                raise WireError(f"the shares of client {client!r} are wrong: {error}") from error
            yield from ((key.secret(public[one], self._context), sign_of(one, client)) for one in self.present)


AnySum = MaskedSum[Summed] | MaskedSum[Totals]


def read_offered(
    reply: bytes, client: ClientId, state: ServerState, agreement: Agreement
) -> tuple[Offered, dict[str, int]]:
    """Decode one reply, and count the bytes of its parts. Raises WireError: it does not fit."""
    return decode_offered(reply, agreement.up, agreement.schema)


def read_done(reply: bytes, client: ClientId, state: ServerState, agreement: Agreement) -> tuple[Done, dict[str, int]]:
    """As ``read_offered``."""
    return decode_done(reply, agreement.up, agreement.schema)


def read_masked(reply: bytes, agreement: Agreement, own: AnySum) -> tuple[Masked, dict[str, int]]:
    """As ``read_offered``. ``own`` is the sum that the client is in."""
    return decode_masked(reply, agreement.up, agreement.schema, own.summed)


def read_dealt(reply: bytes, agreement: Agreement, own: AnySum) -> tuple[Dealt, dict[str, int]]:
    """As ``read_masked``."""
    return decode_dealt(reply, agreement.up, agreement.schema, len(own.cohort) - 1)


def read_opened(reply: bytes, agreement: Agreement, own: AnySum) -> tuple[Opened, dict[str, int]]:
    """As ``read_masked``."""
    length = SHARE if agreement.shares else KEY
    return decode_opened(reply, agreement.up, agreement.schema, own.asked_about, length)
