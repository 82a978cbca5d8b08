"""Groups of clients that the operator gives: nobody says what its data are like.

Server and clients have the groups from the run's config, so nothing of them travels. A client that is in no group with
others is alone, in a group that is called as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from capfl.methods.grouping import Grouping
from capfl.types import ClientId, ClientState, ServerState


@dataclass(frozen=True)
class GivenPeers(Grouping):
    """Groups by name.

    Args:
        peers: the group of each client; one that is not named is alone.
    """

    peers: Mapping[ClientId, str]
    about = "peers, named by the operator"
    divides = True

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Clients in each group that is named."""
        return Counter(self.peers.values())

    def divided(self, state: ServerState, clients: Sequence[ClientId]) -> ServerState:
        group_of = {client: self.peers.get(client, client) for client in clients}
        groups = dict.fromkeys(sorted(set(group_of.values())), state.everybody)
        return replace(state, groups={**state.groups, **groups}, group_of=group_of)

    def stands_alone(self, client: ClientId) -> bool:
        return self.sizes.get(self.peers.get(client, ""), 0) < 2

    def is_alone(self, memory: ClientState) -> bool:
        return self.stands_alone(memory.client)

    def has_peers(self, memory: ClientState) -> bool:
        return not self.stands_alone(memory.client)
