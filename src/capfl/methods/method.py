"""A method is a row of parts: one part for each question that a federated method answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from capfl import adapter as algebra
from capfl.errors import ConfigError
from capfl.methods.combine import Combine, WeightedMean
from capfl.methods.factors import BOTH, Factors
from capfl.methods.grouping import Everybody, Grouping
from capfl.methods.order import Order
from capfl.methods.ranks import AllRanks, Ranks
from capfl.methods.take_home import AfterSteps, NearServer, Own, TakeHome, proximal
from capfl.types import EVERYBODY, Adapter, ClientId, ClientState, Group, Penalty, ServerState, Trained


@dataclass(frozen=True)
class Method:
    """One federated method.

    Attributes:
        name: what ``method.name`` calls it.
        about: what it does, in one line.
        source: the paper, or "reference".
        factors: what is trained and what travels.
        combine: how the updates of a group become its next adapter.
        grouping: who learns with whom.
        order: in which order the members of a group train.
        ranks: which ranks a client has.
        takes_home: what a client's personal model is.
        alpha_f: weight of alpha_f / 2 ||theta - theta_g||^2, which pulls clients towards what they were sent (FedProx).
        pooled: a reference that trains one model on all clients' data in one place.

    Raises:
        ConfigError: parts that do not go together; says which and why.
    """

    name: str
    about: str
    source: str
    factors: Factors = BOTH
    combine: Combine = field(default_factory=WeightedMean)
    grouping: Grouping = field(default_factory=Everybody)
    order: Order = field(default_factory=Order)
    ranks: Ranks = field(default_factory=AllRanks)
    takes_home: TakeHome = field(default_factory=AfterSteps)
    alpha_f: float = 0.0
    pooled: bool = False

    def __post_init__(self) -> None:
        if wrong := next(self._contradictions(), None):
            raise ConfigError(f"{self.name}: {wrong}")

    def _contradictions(self) -> Iterator[str]:
        """Which parts do not go together, why, and what to use: a sentence for each."""
        factors, home = self.factors, self.takes_home
        all_ranks, whole_adapter = isinstance(self.ranks, AllRanks), factors.travel == "AB"
        if not self.combine.adds_mean and factors != BOTH:
            yield "its way to combine updates needs both factors of every client; use factors = BOTH"
        if self.combine.relays and not (isinstance(self.grouping, Everybody) and all_ranks):
            yield (
                "where clients get each other's updates, all of them learn together, with all ranks; "
                "use grouping = Everybody() and ranks = AllRanks()"
            )
        if self.grouping.divides and not whole_adapter:
            yield "peers share a whole adapter; use factors = BOTH or ALTERNATING"
        if not (all_ranks or whole_adapter):
            yield "clients can have ranks of their own only of a whole adapter; use factors = BOTH or ALTERNATING"
        if self.alpha_f and not factors.travel:
            yield "alpha_f holds a client near what the server sends, and nothing travels; use alpha_f = 0"
        if isinstance(home, Own) and factors.travel and not self.grouping.divides:
            yield "its clients keep no adapter that they could take home; use takes_home = AfterSteps()"
        if isinstance(home, NearServer) and (self.grouping.divides or not (all_ranks and factors.whole)):
            yield (
                "an adapter that is held near the server's has all of its factors and ranks, and is no client's start; "
                "use factors = BOTH, grouping = Everybody() and ranks = AllRanks(), or takes_home = AfterSteps()"
            )

    # -- server ----------------------------------------------------------------------------------------

    def start(self, initial: Adapter, clients: Sequence[ClientId] = ()) -> ServerState:
        """The server's state before round 1, for the clients that will take part."""
        adapter = self.combine.first(initial)
        group = Group(adapter, known=self.factors.travelling(adapter))
        ranks = self.ranks.start(initial, clients)
        state = ServerState(0, {EVERYBODY: group}, grouping=self.grouping.start(), ranks=ranks)
        return self.grouping.divided(state, clients)

    @property
    def has_server_model(self) -> bool:
        """Is the server's adapter a model by itself? Not where a factor stays with the clients."""
        return self.pooled or self.factors.whole

    # -- client ----------------------------------------------------------------------------------------

    def starting_point(self, memory: ClientState, initial: Adapter) -> Adapter:
        """Where local training starts: from the group's adapter, and from the client's own factors for the rest."""
        own = initial | memory.adapter
        start = own if self.grouping.is_alone(memory) else own | memory.known
        has = self.ranks.trained(memory.ranks)
        return start if has is None else algebra.without(start, ~has)

    def penalty(self, memory: ClientState, n_train: int) -> Penalty | None:
        """What moves the factors of a client that learns with others after each of its steps."""
        if not self.grouping.has_peers(memory):
            return None
        parts = [self.ranks.penalty(memory.known, memory, n_train)]
        parts += [proximal(self.alpha_f, memory.known)] if self.alpha_f else []
        return _one_after_another([part for part in parts if part is not None])

    def change(self, start: Adapter, trained: Trained, round: int) -> Adapter:
        """What a client sends of its training in a round."""
        return {
            name: trained.adapter[name] - start[name] for name in self.factors.sent(round, algebra.unpatched(start))
        }

    def keeps(self, trained: Trained, memory: ClientState) -> Adapter:
        """The factors that a client keeps from round to round."""
        if isinstance(self.takes_home, NearServer):
            return memory.adapter
        if self.grouping.divides:  # it may be alone in the next round
            return trained.adapter
        return {name: t for name, t in trained.adapter.items() if not self.factors.travels(name)}

    def without_unused_ranks(self, adapter: Adapter, memory: ClientState) -> Adapter:
        """What a client's own model has of an adapter."""
        has = self.ranks.in_own_model(memory.ranks)
        return adapter if has is None else algebra.without(adapter, ~has)

    # -- both ------------------------------------------------------------------------------------------

    def says_nothing(self, client: ClientId) -> bool:
        """Does nobody else need what the client learns? Then secure aggregation has it say that it has trained."""
        return not self.factors.travel or self.grouping.stands_alone(client)

    def describe(self) -> dict[str, str]:
        """Its row, in words."""
        return {
            "method": self.name,
            "what it does": self.about,
            "trained and sent": "all data are in one place" if self.pooled else self.factors.about,
            "combined": "" if self.pooled or not self.factors.travel else self.combine.about,
            "learns with": "" if self.pooled or not self.factors.travel else self.grouping.about,
            "order": "" if self.pooled or not self.factors.travel else self.order.about,
            "ranks": self.ranks.about,
            "personal model": "no personal model" if self.pooled else self.takes_home.about,
            "source": self.source,
        }


def _one_after_another(parts: Sequence[Penalty]) -> Penalty | None:
    """One penalty for several, one after another. Their constants have different names."""
    if len(parts) < 2:
        return parts[0] if parts else None

    def step(now: Adapter, constants: Mapping[str, Tensor], rate: float) -> Adapter:
        for one in parts:
            now = one.step(now, {name: constants[name] for name in one.constants}, rate)
        return now

    return Penalty(step, {name: t for one in parts for name, t in one.constants.items()})
