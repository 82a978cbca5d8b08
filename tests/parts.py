"""What tests of the parts of a method share: rows, folds, and the federation of ``fake`` with any row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from adapters import CODECS
from capfl import adapter as algebra
from capfl.config.schema import FederationConfig
from capfl.methods import Method
from capfl.methods.combine import Combine
from capfl.methods.peers import Description
from capfl.roles.agreement import Agreement
from capfl.roles.limits import Limits
from capfl.types import Adapter, ClientId, ClientState, RoundRecord, Update
from fake import LIMITS, Fake, initial, n_train, steps

CLIENTS = ("a", "b", "c")
INITIAL = initial()  # two modules of rank 2: 180 elements
N = 4  # ranks of all modules together


def row(**parts: object) -> Method:
    return Method("own", "a row of a test", "nowhere", **parts)  # type: ignore[arg-type]


def pair(a: Sequence[float], b: float) -> Adapter:
    """One module of rank 1."""
    return {"m.A": torch.tensor([list(a)]), "m.B": torch.tensor([[b]])}


def products(adapter: Adapter) -> dict[str, torch.Tensor]:
    """What an adapter adds to the base, over its scale: B A, and the patch where there is one; float64."""
    nothing = torch.zeros(())
    pairs = algebra.factors(adapter)
    return {m: up.double() @ down.double() + adapter.get(f"{m}.W", nothing).double() for m, down, up in pairs}


def folded(
    combine: Combine, parts: Iterable[tuple[Adapter, float]], start: Adapter = INITIAL, round: int = 1
) -> Adapter:
    """The adapter after a round in which these changes came, each with its weight."""
    fold = combine.start(combine.first(start), round)
    for change, weight in parts:
        fold.add(change, weight)
    return fold.value()


def description(client: ClientId, kind: int | None = None) -> Description:
    """What a client says of its data. Those of one kind are alike; by default a and b."""
    kind = int(client > "b") if kind is None else kind
    mean, noise = (torch.randn(48, generator=torch.Generator().manual_seed(seed)) for seed in (kind, ord(client)))
    return Description(mean + 0.1 * noise / n_train(client) ** 0.5, torch.full((16,), 0.1), torch.tensor([4.0]))


def update(client: ClientId, change: Adapter | None = None, n: int | None = None, **said: object) -> Update:
    """A client's update of round 1."""
    change = steps(client, 1) if change is None else change
    return Update(1, client, change, n or n_train(client), 2, 1.0, **said)  # type: ignore[arg-type]


class Federation(Fake):
    """Clients whose adapters move by ``fake.steps``, and one row."""

    def __init__(
        self, method: Method, codec: str = "fp32", clients: Sequence[ClientId] = CLIENTS, limits: Limits = LIMITS
    ) -> None:
        super().__init__(Agreement(method, CODECS[codec], INITIAL, "base", seed=3, limits=limits), packed=False)
        self.clients = clients
        self.state = method.start(INITIAL, clients)

    def rounds(self, number: int = 1, **settings: object) -> RoundRecord:
        """So many rounds; the last record. ``settings`` are of the config's section federation."""
        config = FederationConfig(on_failure="skip", **settings)  # type: ignore[arg-type]
        return self.play(number, self.clients, config)[-1]

    def memory(self, client: ClientId) -> ClientState:
        return self.disk.newest(client)

    def changes(self, client: ClientId) -> list[Adapter]:
        """What a client wanted to send, round by round."""
        return [training.change for training in self.trainings if training.client == client]

    def arrived(self) -> dict[ClientId, Adapter]:
        """What the server has read of each client's reply in the last round."""
        return {t.client: t.arrived for t in self.trainings if t.round == self.state.round}
