r"""HetLoRA: clients of unequal rank, who prune themselves and are averaged by how much their adapters do.

Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, arXiv:2401.06432.

**Truncate.** Client k of rank :math:`r_k` starts from the first :math:`r_k` columns of B and rows of A.

**Prune.** With T the client's ranks after the first :math:`\gamma r_k`, it minimises
:math:`F_k + \lambda \lVert B_T \rVert_F \lVert A_T \rVert_F`, and drops T where that product has become smaller.

**Aggregate.** Factors are padded with zeros and averaged,

.. math:: A = \frac{\sum_k S_k A_k}{\sum_k S_k}, \quad B = \frac{\sum_k S_k B_k}{\sum_k S_k}, \quad
          S_k = \lVert B_k A_k \rVert_F.

The equations are of one module. Here each module is pruned on its own, :math:`S_k` is the norm over all of them, and a
rank that none of the round's clients has keeps its row of A: zero in both factors, it could not be trained again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.maths.products import norm
from capfl.methods.base import ALIVE, Method, reached
from capfl.methods.fedit import fedit
from capfl.methods.unequal import living, unequal
from capfl.types import Adapter, ClientState, Penalty, ServerState, Trained, Update

SHARES = (1.0, 0.5, 0.25)  # of the rank, in turn; these three numbers are ours
PRUNE_TO, PRUNE_WEIGHT = 0.85, 5e-3  # gamma and lambda
TINY = 1e-30  # the weight of a client whose adapter does nothing


def hetlora(shares: Sequence[float] = SHARES, gamma: float = PRUNE_TO, weight: float = PRUNE_WEIGHT) -> Method:
    """``weight`` is lambda; ``shares`` are those of the rank that clients have, see ``unequal``."""

    def weighted(server: ServerState, update: Update) -> tuple[Adapter, float]:
        factors, _ = reached(server, update)
        return factors, max(TINY, norm(factors))

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        mean, somebody = algebra.Mean(), torch.zeros(len(server.notes[ALIVE]), dtype=torch.bool)
        for update in updates:
            mean.add(*weighted(server, update))
            somebody |= living(update.notes)
        rows = algebra.factor(algebra.without(server.adapter, somebody), "A")
        return replace(server, adapter=algebra.add(mean.value(), rows))

    def penalty(received: Adapter, memory: ClientState) -> Penalty:
        def term(now: Adapter, tails: Mapping[str, Tensor]) -> Tensor:
            return weight * torch.stack(list(sizes(now, tails).values())).sum()

        return Penalty(term, dict(algebra.by_module(tail_of(living(memory.notes), received), received)))

    def tail_of(alive: Tensor, adapter: Adapter) -> Tensor:
        """Marks (n,) of the living ranks of every module after the first gamma r_k; its first rank is in none."""
        tails = []
        for _, marks in algebra.by_module(alive, adapter):
            number = marks.long().cumsum(0)
            r = int(marks.sum())
            tails.append(marks & (number > max(1, min(r - 1, math.ceil(gamma * r)))))
        return torch.cat(tails)

    def collect(start: Adapter, trained: Trained, memory: ClientState) -> tuple[Adapter, ClientState]:
        tail = tail_of(living(memory.notes), start)
        tails = dict(algebra.by_module(tail, start))
        before, after = sizes(start, tails), sizes(trained.adapter, tails)
        shrunk = torch.cat([marks & bool(after[module] < before[module]) for module, marks in tails.items()])
        memory = replace(memory, notes=memory.notes | {ALIVE: (living(memory.notes) & ~shrunk).float()})
        return algebra.without(algebra.subtract(trained.adapter, start), shrunk), memory

    method = replace(
        fedit(),
        name="hetlora",
        about="unequal ranks, pruned by their clients, averaged by the norm of B A",
        citation="arXiv:2401.06432",
        penalty=penalty,
        collect=collect,
        aggregate=aggregate,
        reached=weighted,
        rewrites=True,
    )
    return unequal(method, shares)


def sizes(adapter: Adapter, tails: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """||B_T||_F ||A_T||_F of every module, of the ranks T that are marked."""
    return {
        module: torch.linalg.vector_norm(up * tails[module]) * torch.linalg.vector_norm(down * tails[module][:, None])
        for module, down, up in algebra.factors(adapter)
    }
