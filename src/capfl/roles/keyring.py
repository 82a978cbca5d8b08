"""A client's keys of secure aggregation: in memory alone, and each for one sum. What outlives them is a number."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from capfl.errors import CheckpointError, ConfigError, WireError
from capfl.files import write_atomically
from capfl.maths.masks import KEY, PrivateKey, Whole, masked, sealed, stream_of, unsealed
from capfl.maths.shares import SHARE, shared
from capfl.methods.secure import FEWEST
from capfl.rng import Draw
from capfl.types import Broadcast, ClientId, Offer
from capfl.wire.secure import write_cohort

Sign = Callable[[bytes], bytes]
Verify = Callable[[Offer, bytes], None]
"""Raises WireError: the offer's signature is not that of its client, for these bytes."""


class Keyring:
    """Makes a key for a round, hides one update with it, and opens masks of those who have not answered.

    A key hides one update and no other, and once it has opened a mask it hides none any more. A client whose process
    has ended since it made its key has failed in this round.

    Against a malicious server a client has a second mask of its own, and deals out shares of its key and of that mask
    to the others. In the end it says of each client one of the two shares that it has, and never both.

    Args:
        sign: signs by the key of the client's node. None: it has none.
        verify: checks signatures of the others. None: nobody's are known.
        opened: file with the last round in whose sum it has had its part, for a server that may lie, who could have
            the process end and ask for another sum of that round. None: it knows as long as the process lives.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(self, sign: Sign | None = None, verify: Verify | None = None, opened: Path | None = None) -> None:
        self._sign, self._verify = sign, verify
        self._round = 0
        self._key: PrivateKey | None = None
        self._box: PrivateKey | None = None  # by which others seal shares
        self._offer = Offer("", b"")
        self._file, self._last = opened, _round_in(opened) if opened else 0
        self._forget()

    def _forget(self) -> None:
        """What is of one key."""
        self._cohort: tuple[Offer, ...] = ()
        self._own_mask = b""
        self._once = False
        self._random = b""  # of the noise on the update: the same if it is asked for again
        self._dealt: list[bytes] = []  # this client's shares, sealed, in the order of the others
        self._shares: dict[ClientId, bytes] = {}  # of each client: of its key and of its own mask, one after the other
        self._hidden: tuple[bytes, bytes] | None = None  # digest of the update, and context of the secrets
        self._opened: tuple[ClientId, ...] | None = None

    @property
    def clients(self) -> int:
        """How many may be in the sum."""
        return len(self._cohort)

    # -- before training -------------------------------------------------------------------------------

    def offer(self, round: int, client: ClientId, schema: bytes, shares: bool = False, once: bool = False) -> Offer:
        """The keys for a round; the same when they are asked for again, unless they are spent since.

        Args:
            shares: may the server lie?
            once: would training that is done again lead to another update? Then keys that have hidden one are spent.

        Raises:
            WireError: it may, and the client has opened a sum in this round or a later one, or hidden an update with
                noise: training can be repeated, and two sums of it would tell what is between them.
            ConfigError: it may, and nobody could tell its keys from those of the others.
        """
        if shares and self._sign is not None and self._verify is None:
            raise ConfigError(
                "privacy.secure_aggregation: a malicious server could deal out keys of its own; start the node with "
                "--peers DIR, a folder with the public keys of all nodes"
            )
        alive = self._key is not None and self._round == round and not self._spent
        if shares and round <= self._last and not alive:
            raise WireError(
                f"this client has been in the sum of round {self._last} and takes part in none of round {round}; if "
                "the server has lost that round, and all sites want it summed once more, "
                + (f"delete {self._file} and start the node again" if self._file else "start again")
            )
        if not alive:
            self._forget()
            self._once = once
            self._round, self._key, self._box = round, PrivateKey(), PrivateKey() if shares else None
            offer = Offer(client, self._key.public, box=self._box.public if self._box else b"")
            signature = self._sign(signed_bytes(round, offer, schema)) if self._sign else b""
            self._offer = replace(offer, signature=signature)
        return self._offer

    def deal(self, message: Broadcast, schema: bytes) -> list[bytes]:
        """Shares of this client's key and of its own mask, sealed for each of the others, in the order of their ids.

        Raises:
            WireError: as ``check``, or they were dealt out among others before.
        """
        self._require_key(message)
        if self._cohort and message.cohort != self._cohort:
            raise WireError(f"the shares of round {message.round} were dealt out among other clients")
        if not self._cohort:
            self._require_cohort(message, schema)
            assert self._key is not None
            self._own_mask, self._cohort = os.urandom(KEY), message.cohort
            n = len(self._cohort)
            pairs = zip(self._cohort, shared(self._key.private, n), shared(self._own_mask, n), strict=True)
            of = {one.client: key + mask for one, key, mask in pairs}
            self._shares = {self._offer.client: of[self._offer.client]}
            self._dealt = [sealed(self._seal(one, self._offer), of[one.client]) for one in self._others]
        return self._dealt

    def check(self, message: Broadcast, schema: bytes) -> None:
        """See that an update may be hidden among those of a request to train.

        Raises:
            WireError: the key is not here or is spent, the others are too few, somebody's key is not theirs, or against
                a malicious server, somebody's shares are not there.
        """
        self._require_key(message)
        if self._spent:
            raise WireError(
                f"this client has answered in round {message.round}, and its items are protected: with other noise its "
                "update would be another, and two under one key give both away; it takes part again with a new key"
            )
        if self._box is None:
            self._require_cohort(message, schema)
            self._cohort = message.cohort
            return
        if not self._cohort or len(message.shares) != len(self._others):
            raise WireError(f"there are shares of {len(message.shares)} clients, of {len(self._others)} are needed")
        for one, box in zip(self._others, message.shares, strict=True):
            try:
                self._shares[one.client] = unsealed(self._seal(one, one), box)
            except ValueError as error:
                raise WireError(f"the shares of client {one.client!r} are not those that it dealt out here") from error

    def hide(self, whole: Whole, message: Broadcast, schema: bytes, noisy: bool = False) -> Whole:
        """The update under masks, after ``check``.

        Args:
            noisy: is there noise in it, which would be other noise under another key? Then a server that may lie gets
                it under this key alone: it could open the sum without this client, and have another one with it.

        Raises:
            WireError: the key has hidden another update before.
            CheckpointError: that it has hidden one cannot be written down.
        """
        context = context_of(schema, message.round, message.version)
        digest = hashlib.sha256(whole.values.tobytes() + whole.numbers.tobytes()).digest()
        if self._hidden is not None and self._hidden[0] != digest:
            raise WireError(f"the key for round {message.round} has hidden another update; two would give both away")
        if noisy and self._box:
            self._write_down(message.round)
        self._hidden = digest, context
        pairs = [(self._secret(one, context), sign_of(self._offer.client, one.client)) for one in self._others]
        own = [(self._own_mask, 1)] if self._own_mask else []
        return masked(whole, pairs + own)

    def draw(self) -> Draw:
        """Random bytes that nobody else knows, of the round's key: the same from the beginning whenever they are asked
        for, so that an update that is made again is the same one."""
        self._random = self._random or os.urandom(KEY)
        return stream_of(self._random)

    # -- after training --------------------------------------------------------------------------------

    def open(self, round: int, gone: Sequence[ClientId], fewest: int) -> dict[ClientId, bytes]:
        """The secrets that the client shares with those of its sum who have not answered; or, against a malicious
        server, of everybody a share: of the key of those who have not answered, and of the own mask of the others.

        Args:
            fewest: so many have to be in the sum that it opens.

        Raises:
            WireError: it has hidden nothing in this round, the others that are left are too few, or it was asked about
                others before.
            CheckpointError: that it has opened the sum cannot be written down.
        """
        if self._hidden is None or self._round != round:
            raise WireError(f"this client has hidden no update in round {round}")
        others = {one.client: one for one in self._others}
        if not set(gone) <= others.keys() or not (gone or self._box) or self._opened not in (None, tuple(gone)):
            raise WireError("these are not clients whose masks this client opens")
        left = self.clients - len(gone)
        if left < fewest:
            raise WireError(f"the sum of {left} of {self.clients} clients would be opened, {fewest} are the fewest")
        if self._box:
            self._write_down(round)
        self._opened = tuple(gone)
        if self._box is None:
            return {client: self._secret(others[client], self._hidden[1]) for client in gone}
        parts = {True: slice(0, SHARE), False: slice(SHARE, None)}  # of its key, of its own mask
        return {one.client: self._shares[one.client][parts[one.client in gone]] for one in self._cohort}

    # -- checks and secrets ------------------------------------------------------------------------------

    def _write_down(self, round: int) -> None:
        """Have no part in another sum of this round, before anything is said that one could be made of."""
        if round > self._last:
            if self._file:
                write_atomically(self._file, str(round).encode())
            self._last = round

    @property
    def _spent(self) -> bool:
        """Has the key done all that it may?"""
        return self._opened is not None or (self._once and self._hidden is not None)

    def _require_key(self, message: Broadcast) -> None:
        if self._key is None or self._round != message.round or self._opened is not None:
            raise WireError(
                f"the key for round {message.round} is not here, or is spent: the process was started again since it "
                "was made; the client takes part from the next round on"
            )

    def _require_cohort(self, message: Broadcast, schema: bytes) -> None:
        cohort = message.cohort
        if self._offer not in cohort:
            raise WireError(f"the keys of round {message.round} are not with this client's own among them")
        if len(cohort) < FEWEST or len({one.key for one in cohort}) < len(cohort):
            raise WireError(f"an update would be hidden among {len({o.key for o in cohort})}, {FEWEST} are the fewest")
        for one in cohort:
            if bool(one.box) != bool(self._box):
                raise WireError(f"client {one.client!r} takes the server for another than this client does")
            if self._verify is not None and one != self._offer:
                self._verify(one, signed_bytes(message.round, one, schema))

    @property
    def _others(self) -> list[Offer]:
        return [one for one in self._cohort if one != self._offer]

    def _secret(self, other: Offer, context: bytes) -> bytes:
        assert self._key is not None
        return _agreed(self._key, other.client, other.key, context)

    def _seal(self, other: Offer, sender: Offer) -> bytes:
        """The secret that seals what the sender, one of the two, has for the other; for one cohort alone."""
        assert self._box is not None
        cohort = hashlib.sha256(write_cohort(self._cohort)).digest()
        return _agreed(self._box, other.client, other.box, b"shares" + cohort + sender.box)


def _round_in(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path}, which has the last round whose sum this client opened: {error}; restore it from a "
            "copy, or write the number of the newest round into it"
        ) from error


def _agreed(key: PrivateKey, client: ClientId, public: bytes, context: bytes) -> bytes:
    try:
        return key.secret(public, context)
    except ValueError as error:
        raise WireError(f"the key of client {client!r} is none") from error


def sign_of(own: ClientId, other: ClientId) -> int:
    """Does a client add (1) or subtract (-1) the mask that it shares with another?"""
    return 1 if own < other else -1


def context_of(schema: bytes, round: int, version: int) -> bytes:
    """What secrets of pairs are for: one sum.

    Args:
        version: the newest one, which clients are sent in that round.
    """
    return schema + round.to_bytes(4, "little") + version.to_bytes(4, "little")


def signed_bytes(round: int, offer: Offer, schema: bytes) -> bytes:
    """What a client's node signs of its keys."""
    length = bytes([len(offer.box)])
    return b"capfl key" + schema + round.to_bytes(4, "little") + offer.key + length + offer.box + offer.client.encode()
