r"""LoRA-FAIR: averaged factors, with a correction of B for what the mean of factors misses.

Bian et al., LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement, arXiv:2411.14961.

With :math:`\bar A, \bar B` the means and :math:`M = \sum_k p_k B_k A_k`, the server adds to :math:`\bar B`

.. math:: \Delta B = \arg\min \lVert M - (\bar B + \Delta B) \bar A \rVert_F^2 + \lambda \lVert \Delta B \rVert_F^2
          = (M - \bar B \bar A) \bar A^\top (\bar A \bar A^\top + \lambda I)^{-1}.

The paper maximises a cosine similarity in place of the first term, by gradient descent; the Frobenius norm has this
closed form. :math:`\lambda` is in units of the mean of :math:`\bar A \bar A^\top`'s diagonal.

Where a codec sends a part of the elements, B is corrected in those that some client has sent: an answer in all elements
would be thinned by the codec once more, and what had arrived in it counted twice (docs/adr/0009).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from capfl import adapter as algebra
from capfl.maths.products import Products
from capfl.methods.base import Method, reached
from capfl.methods.fedit import add_mean_change, fedit
from capfl.types import ServerState, Update

LAMBDA = 0.01


def lora_fair(strength: float = LAMBDA) -> Method:
    """FedIT with a corrected mean. All updates of a round are in the server's memory at once."""

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        heard = list(updates)
        products = Products([reached(server, update) for update in heard])
        mean = add_mean_change(server, heard)
        refined = dict(mean.adapter)
        for module, down, up in algebra.factors(mean.adapter):
            a, b = down.double(), up.double()
            gram = a @ a.T
            missing = products.times(module, a.T) - b @ gram
            ridge = gram + strength * gram.diagonal().mean() * torch.eye(len(a), dtype=torch.float64)
            corrected = (b + torch.linalg.solve(ridge, missing.T).T).float()
            sent = up != server.adapter[f"{module}.B"]
            refined[f"{module}.B"] = torch.where(sent, corrected, up)
        return replace(mean, adapter=refined)

    return replace(
        fedit(),
        name="lora-fair",
        about="mean of the factors, B corrected towards the mean of the products",
        citation="arXiv:2411.14961",
        aggregate=aggregate,
    )
