"""What the messages of secure aggregation take, beside those of a round without it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from capfl.maths.masks import KEY, Whole, kind_of
from capfl.plan.messages import Parts, counted
from capfl.roles import server
from capfl.roles.agreement import Agreement
from capfl.types import ClientId, Offer, ServerState
from capfl.wire.header import unseal
from capfl.wire.sections import parts
from capfl.wire.secure import MASKED, Masked, Offered, encode_masked, encode_offered, write_cohort


@dataclass(frozen=True)
class SecureMessages:
    """Of a simulation: nodes of a network sign their keys, with 96 bytes more for each key."""

    agreement: Agreement
    made: dict[tuple[int, int], Parts] = field(default_factory=dict)  # of an update, by round and clients

    def key(self, client: ClientId) -> tuple[Parts, Parts]:
        """The request for a key, and the key."""
        asked = server.ask(ServerState(0, {}), client, self.agreement).parts
        blob = encode_offered(Offered(1, client, _offer(client)), self.agreement.up, self.agreement.schema)
        return counted(asked), counted({"keys": KEY}, len(blob) - KEY)

    def cohort(self, clients: Sequence[ClientId]) -> Parts:
        """What a request to train has more: the keys of all."""
        return counted(parts(write_cohort([_offer(client) for client in clients])))

    def masked(self, client: ClientId, round: int, clients: int) -> Parts:
        """An update in a sum of so many."""
        if (round, clients) not in self.made:
            agreed = self.agreement
            summed = agreed.summed(round, round, clients)
            values, numbers = np.zeros(summed.n_values, kind_of(summed.width)), np.zeros(summed.n_numbers, np.uint32)
            whole = Whole(values, summed.width, numbers)
            blob = encode_masked(Masked(round, "", whole), agreed.up, agreed.schema)
            _, body = unseal(blob, MASKED, agreed.up.values.tag, agreed.schema)
            self.made[round, clients] = counted(parts(body), len(blob) - len(body))
        return self.made[round, clients] + counted({}, len(client.encode()))


def _offer(client: ClientId) -> Offer:
    return Offer(client, bytes(KEY))
