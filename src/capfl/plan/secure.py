"""What the messages of secure aggregation take, beside those of a round without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from capfl.maths.masks import KEY, Whole, kind_of
from capfl.maths.shares import SHARE
from capfl.plan.messages import Parts, counted
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.roles.server import Beside
from capfl.types import ClientId, Offer, ServerState
from capfl.wire import Codec
from capfl.wire.header import unseal
from capfl.wire.sections import parts
from capfl.wire.secure import (
    SEALED,
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
    write_cohort,
    write_shares,
)  # fmt: skip

KIND = 5  # place of the kind in a message


@dataclass(frozen=True)
class SecureMessages:
    """Messages of secure aggregation in a simulation. Over a network nodes sign keys: 96 bytes more for each."""

    agreement: Agreement
    made: dict[tuple[int, int], Parts] = field(default_factory=dict)  # of an update, by round and clients

    def beside(self, turn: Sequence[ClientId], client: ClientId) -> list[tuple[Parts, Parts]]:
        """Each request beside that to train, and its reply, of a client in a turn in which all answer."""
        box, others = (bytes(KEY), len(turn) - 1) if self.agreement.shares else (b"", 0)
        asked = [(Beside(), encode_offered(Offered(1, client, Offer(client, bytes(KEY), b"", box)), *self._up))]
        if self.agreement.shares:
            dealt, said = [bytes(SEALED)] * others, dict.fromkeys(turn, bytes(SHARE))
            asked += [
                (Beside(self._offers(turn)), encode_dealt(Dealt(1, client, dealt), *self._up)),
                (Beside(), encode_opened(Opened(1, client, said), *self._up)),
            ]
        state = ServerState(0, {})
        return [
            (counted(server.ask(state, client, self.agreement, one).parts), self._parts(blob)) for one, blob in asked
        ]

    def more(self, turn: Sequence[ClientId]) -> Parts:
        """What a request to train has more: the keys of all, or what the others have sealed."""
        if self.agreement.shares:
            return counted(parts(write_shares([bytes(SEALED)] * (len(turn) - 1))))
        return counted(parts(write_cohort(self._offers(turn))))

    def masked(self, client: ClientId, round: int, clients: int) -> Parts:
        """An update in a sum of so many."""
        if (round, clients) not in self.made:
            summed = self.agreement.summed(round, round, clients)
            values, numbers = np.zeros(summed.n_values, kind_of(summed.width)), np.zeros(summed.n_numbers, np.uint32)
            whole = Whole(values, summed.width, numbers)
            self.made[round, clients] = self._parts(encode_masked(Masked(round, "", whole), *self._up))
        return self.made[round, clients] + counted({}, len(client.encode()))

    def done(self, client: ClientId) -> Parts:
        """The message of a client that says that it has trained, and no more."""
        return self._parts(encode_done(Done(1, client), *self._up))

    @property
    def _up(self) -> tuple[Codec, bytes]:
        return self.agreement.up, self.agreement.schema

    def _offers(self, turn: Sequence[ClientId]) -> tuple[Offer, ...]:
        box = bytes(KEY) if self.agreement.shares else b""
        return tuple(Offer(client, bytes(KEY), b"", box) for client in turn)

    def _parts(self, blob: bytes) -> Parts:
        """The bytes of each part of a client's message."""
        codec, schema = self._up
        _, body = unseal(blob, blob[KIND], codec.values.tag, schema)
        return counted(parts(body), len(blob) - len(body))
