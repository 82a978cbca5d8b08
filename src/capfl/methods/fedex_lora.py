r"""FedEx-LoRA: the means of the factors, and what they miss of the mean of the products goes into the base.

Singhal et al., FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models,
arXiv:2410.09432.

.. math:: A \leftarrow \sum_k p_k A_k, \quad B \leftarrow \sum_k p_k B_k, \quad
          W_0 \leftarrow W_0 + s \Bigl(\sum_k p_k B_k A_k - B A\Bigr).

With m clients the residual has rank m r at most, so it travels as the m clients' factors: the server relays their
changes, and each client forms means and residual itself. A client that missed rounds needs all the residuals that it
missed.

Here :math:`p_k \propto n_k`, where the paper has 1/m, and the residual is a sum over
:math:`(\Delta B_k - \Delta B_1)(\Delta A_k - \Delta A_1)`, which is the same and nil where all clients agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from capfl import adapter as algebra
from capfl.maths.products import MeanProduct
from capfl.methods.base import Method, making
from capfl.methods.fedit import fedit
from capfl.types import Adapter, ClientState, ServerState, Trained


def fedex_lora() -> Method:
    """FedIT whose clients patch the base by what the mean of factors misses."""

    def relay(version: Adapter, round: int, changes: Iterable[tuple[Adapter, float]]) -> Adapter:
        mean, products, first = algebra.Mean(), MeanProduct(), None
        still = algebra.zeros(algebra.unpatched(version))
        for change, weight in changes:
            whole = still | change
            first = first or whole
            mean.add(whole, weight)
            products.add(algebra.subtract(whole, first), weight)
        missed = products.value()
        for module, down, up in algebra.factors(algebra.subtract(mean.value(), first or still)):
            missed[f"{module}.W"].addmm_(up, down, alpha=-1)
        return algebra.add(version, mean.value() | missed)

    return replace(
        fedit(),
        name="fedex-lora",
        about="mean of A and mean of B, what they miss goes into the base",
        citation="arXiv:2410.09432",
        travels="A and B up, all clients' down",
        exact=True,
        init_server=lambda init: ServerState(0, init | algebra.blank(init)),
        collect=change_of_factors,
        aggregate=making(relay),
        relay=relay,
    )


def change_of_factors(start: Adapter, trained: Trained, memory: ClientState) -> tuple[Adapter, ClientState]:
    """What training has changed; the base's patch stands still."""
    return algebra.subtract(algebra.unpatched(trained.adapter), start), memory
