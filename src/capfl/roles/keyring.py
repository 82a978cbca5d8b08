"""A client's keys of secure aggregation: in memory alone, and each for one sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from capfl.errors import WireError
from capfl.maths.masks import PrivateKey, Whole, expanded
from capfl.methods.secure import FEWEST
from capfl.types import Broadcast, ClientId, Offer

Sign = Callable[[bytes], bytes]
Verify = Callable[[Offer, bytes], None]
"""Raises WireError: the offer's signature is not that of its client, for these bytes."""


class Keyring:
    """Makes a key for a round, hides one update with it, and opens masks of those who have not answered.

    A key hides one update and no other, and once it has opened a mask it hides none any more. A client whose process
    has ended since it made its key has failed in this round.

    Args:
        sign: signs by the key of the client's node. None: it has none.
        verify: checks signatures of the others. None: nobody's are known.
    """

    def __init__(self, sign: Sign | None = None, verify: Verify | None = None) -> None:
        self._sign, self._verify = sign, verify
        self._round = 0
        self._key: PrivateKey | None = None
        self._offer = Offer("", b"")
        self._hidden: tuple[bytes, tuple[Offer, ...], bytes] | None = None  # digest of the update, cohort, context
        self._opened: tuple[ClientId, ...] = ()

    def offer(self, round: int, client: ClientId, schema: bytes) -> Offer:
        """The key for a round; the same when it is asked for again, unless it has opened a mask since."""
        if self._key is None or self._round != round or self._opened:
            self._key, self._round, self._hidden, self._opened = PrivateKey(), round, None, ()
            signature = self._sign(signed_bytes(round, client, self._key.public, schema)) if self._sign else b""
            self._offer = Offer(client, self._key.public, signature)
        return self._offer

    def check(self, message: Broadcast, schema: bytes) -> None:
        """See that an update may be hidden among those of a request to train.

        Raises:
            WireError: the key is not here or is spent, the others are too few, or somebody's key is not theirs.
        """
        cohort = message.cohort
        if self._key is None or self._round != message.round or self._opened:
            raise WireError(
                f"the key for round {message.round} is not here, or is spent: the process was started again since it "
                "was made; the client takes part from the next round on"
            )
        if self._offer not in cohort:
            raise WireError(f"the keys of round {message.round} are not with this client's own among them")
        if len(cohort) < FEWEST or len({one.key for one in cohort}) < len(cohort):
            raise WireError(f"an update would be hidden among {len({o.key for o in cohort})}, {FEWEST} are the fewest")
        for one in cohort:
            if self._verify is not None and one != self._offer:
                self._verify(one, signed_bytes(message.round, one.client, one.key, schema))

    def hide(self, whole: Whole, message: Broadcast, schema: bytes) -> Whole:
        """The update under masks.

        Raises:
            WireError: as ``check``, or the key has hidden another update before.
        """
        self.check(message, schema)
        context = schema + message.round.to_bytes(4, "little") + message.version.to_bytes(4, "little")
        digest = hashlib.sha256(whole.values.tobytes() + whole.numbers.tobytes()).digest()
        if self._hidden is not None and self._hidden[0] != digest:
            raise WireError(f"the key for round {message.round} has hidden another update; two would give both away")
        self._hidden = digest, message.cohort, context
        for one in message.cohort:
            if one != self._offer:
                mask = expanded(self._secret(one, context), len(whole.values), whole.width, len(whole.numbers))
                whole = whole.plus(mask, sign_of(self._offer.client, one.client))
        return whole

    def open(self, round: int, gone: Sequence[ClientId]) -> dict[ClientId, bytes]:
        """The secrets that the client shares with those of its sum who have not answered.

        Raises:
            WireError: it has hidden nothing in this round, the others that are left are too few, or it was asked about
                others before.
        """
        if self._hidden is None or self._round != round:
            raise WireError(f"this client has hidden no update in round {round}")
        _, cohort, context = self._hidden
        others = {one.client: one for one in cohort if one != self._offer}
        if not gone or not set(gone) <= others.keys() or self._opened not in ((), tuple(gone)):
            raise WireError("these are not clients whose masks this client opens")
        if len(cohort) - len(gone) < FEWEST:
            raise WireError(f"the sum of {len(cohort) - len(gone)} would be opened, {FEWEST} are the fewest")
        self._opened = tuple(gone)
        return {client: self._secret(others[client], context) for client in gone}

    def _secret(self, other: Offer, context: bytes) -> bytes:
        assert self._key is not None
        try:
            return self._key.secret(other.key, context)
        except ValueError as error:
            raise WireError(f"the key of client {other.client!r} is none") from error


def sign_of(own: ClientId, other: ClientId) -> int:
    """Does a client add (1) or subtract (-1) the mask that it shares with another?"""
    return 1 if own < other else -1


def signed_bytes(round: int, client: ClientId, key: bytes, schema: bytes) -> bytes:
    """What a client's node signs of its key."""
    return b"capfl key" + schema + round.to_bytes(4, "little") + key + client.encode()
