"""The record that a method is: pure functions, made by a factory that closes over the hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from capfl import adapter as algebra
from capfl.types import (
    Adapter,
    ClientId,
    ClientState,
    NoteKind,
    Notes,
    Penalty,
    ServerState,
    Trained,
    Update,
)  # fmt: skip

Relay = Callable[[Adapter, int, Iterable[tuple[Adapter, float]]], Adapter]
"""(version, round, clients' changes of that round with their weights) -> the next version, on either side."""


ALIVE = "alive"  # the note of which ranks a client has, (n,): see methods.unequal


def reached(server: ServerState, update: Update) -> tuple[Adapter, float]:
    """Where a client's training has led from what the server meant it to start from, and its weight in the mean.

    With error feedback a client knows less than that yet; what is still to come down to it is not to be lost here.
    """
    factors = algebra.add(server.told(update.client).adapter, update.adapter)
    alive = update.notes.get(ALIVE)
    return (factors if alive is None else algebra.without(factors, alive == 0)), update.n_train


@dataclass(frozen=True)
class Method:
    """One federated method. Tensors in, tensors out; no method sees a module, a message or a file.

    The functions stand in the order in which a round calls them.
    """

    name: str
    about: str  # one line
    citation: str
    travels: str  # which factors, each way
    exact: bool | None  # is what the server adds to the base the mean of what clients add? None: no such mean
    init_server: Callable[[Adapter], ServerState]
    init_client: Callable[[ClientId, Adapter], ClientState]
    broadcast: Callable[[ServerState], Adapter]  # what all clients are to know; the same tensors every round
    install: Callable[[Adapter, ClientState], Adapter]  # received + memory -> where local training starts
    trainable: Callable[[int, str], bool]  # (round, factor name) -> is it trained?
    penalty: Callable[[Adapter, ClientState], Penalty] | None  # (received, memory) -> term added to the loss
    collect: Callable[[Adapter, Trained, ClientState], tuple[Adapter, ClientState]]  # (start, trained, memory)
    aggregate: Callable[[ServerState, Iterable[Update]], ServerState]  # updates come one by one, by client id
    relay: Relay | None = None  # the clients' own changes go down, and everybody makes the next version of them
    reached: Callable[[ServerState, Update], tuple[Adapter, float]] = reached  # factors and weight, for exactness
    enrol: Callable[[ServerState, Sequence[ClientId]], ServerState] | None = None  # who takes part, before round 1
    has_global: bool = True  # does the server's adapter mean anything?
    private: Callable[[Adapter, ClientState], tuple[Adapter, Penalty]] | None = None  # a second training, of its own
    settle: Callable[[Adapter, ClientState], Adapter] = lambda start, memory: start  # what a personal model may have
    personal: Callable[[ClientState], Adapter] | None = None  # None: the global adapter after local steps, or
    mix: Callable[[ClientState], float] = lambda memory: 1.0  # this share of the way from the one to the other
    rewrites: bool = False  # does the server change elements that no client sent? What it says is then said in full
    pooled: bool = False  # trained on the union of all clients' data, as a reference
    kinds: Mapping[str, NoteKind] = field(default_factory=dict)  # of the notes that go beside adapters, both ways
    brief: Callable[[ServerState, ClientId], Notes] | None = None  # what a client is told beside its adapter
    heed: Callable[[Notes, ClientState], ClientState] | None = None  # (told, memory), once a round before install
    report: Callable[[ClientState], Notes] | None = None  # what a client says beside its change
    inspect: Callable[[ServerState, Update], None] | None = None  # raises WireError where a client's report cannot be
    meet: Callable[[ServerState, ClientId, Notes], ServerState] | None = None  # a client that has yet to train says who
    describes: bool = False  # does a client note what its data are like, see roles.client.Site?
    importance: Callable[[Notes], Tensor | None] = lambda notes: None  # of each rank, (n,): how much of it is sent
    epsilon: Callable[[int], float] | None = None  # of differential privacy, for a client's part in so many rounds
    sends: Callable[[Notes], Tensor | None] = lambda notes: None  # which ranks a message has, (n,) bool; None: all
    alive: Callable[[Notes], Tensor | None] = lambda notes: None  # which ranks a client's own model has; recorded
    kappa: Callable[[Notes], Tensor | None] = lambda notes: None  # what each rank is worth to a client, (n,); recorded


def making(relay: Relay) -> Callable[[ServerState, Iterable[Update]], ServerState]:
    """The ``aggregate`` of a method that relays: the server does what its clients will do."""

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        changes = ((update.adapter, float(update.n_train)) for update in updates)
        return replace(server, adapter=relay(server.adapter, server.round + 1, changes))

    return aggregate
