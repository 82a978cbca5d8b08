r"""FLoRA: clients' factors are stacked, their product goes into the base, and everybody starts anew.

Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations,
arXiv:2409.05976.

With :math:`B = [B_1, \dots, B_m]` and :math:`A = [p_1 A_1; \dots; p_m A_m]` the product
:math:`B A = \sum_k p_k B_k A_k` is exact, whatever the clients' ranks, and :math:`W_0 \leftarrow W_0 + s B A`. Then A
is drawn anew and B = 0, so the first step of a round moves B alone.

The stack travels as the clients' changes, which the server relays. A is drawn from the run's seed and the round, the
same for all, so that it costs nothing; in the paper each client draws its own. What a message could not carry of a
change belongs to factors that are gone, so no residual is kept, whatever the codec.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from capfl import adapter as algebra
from capfl.maths.products import MeanProduct
from capfl.methods.base import Method, making
from capfl.methods.fedex_lora import change_of_factors
from capfl.methods.fedit import fedit
from capfl.methods.unequal import unequal
from capfl.types import Adapter, ClientState, Notes, ServerState


def flora(seed: int, shares: Sequence[float] = ()) -> Method:
    """``seed`` draws A; ``shares`` are those of the rank that clients have, see ``unequal``."""

    def relay(version: Adapter, round: int, changes: Iterable[tuple[Adapter, float]]) -> Adapter:
        products = MeanProduct()
        for change, weight in changes:
            products.add(algebra.add(version, change), weight)
        merged = {name: version[name] + t for name, t in products.value().items()}
        fresh = algebra.drawn({name: t.shape for name, t in algebra.unpatched(version).items()}, seed, round)
        return fresh | merged

    def forget(told: Notes, memory: ClientState) -> ClientState:
        return replace(memory, residual={})

    method = replace(
        fedit(),
        name="flora",
        about="factors stacked and merged into the base, then drawn anew",
        citation="arXiv:2409.05976",
        travels="A and B up, all clients' down",
        exact=True,
        init_server=lambda init: ServerState(0, init | algebra.blank(init)),
        heed=forget,
        collect=change_of_factors,
        aggregate=making(relay),
        relay=relay,
    )
    return unequal(method, shares)
