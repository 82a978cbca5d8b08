r"""FlexLoRA: the mean of the products, cut to the adapter's rank by its singular values.

Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources,
arXiv:2402.11505.

:math:`\sum_k p_k B_k A_k = U S V^\top`; client k of rank :math:`r_k` goes on from :math:`B = U_{r_k} S_{r_k}`,
:math:`A = V_{r_k}^\top`: the first ranks of the server's adapter. What that one is cut by is the aggregation error.
A rank that the sum does not have keeps its row of A, so that it can be trained again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from capfl import adapter as algebra
from capfl.maths.products import Products
from capfl.methods.base import Method, reached
from capfl.methods.fedit import fedit
from capfl.methods.unequal import unequal
from capfl.types import ServerState, Update


def flexlora(shares: Sequence[float] = ()) -> Method:
    """FedIT with another mean. All updates of a round are in the server's memory at once.

    Args:
        shares: of the rank that clients have, see ``unequal``.
    """

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        products = Products([reached(server, update) for update in updates])
        adapter = dict(server.adapter)
        for module, rank in algebra.ranks(server.adapter).items():
            up, down = products.truncated(module, rank)
            down = torch.where(down.any(1, keepdim=True), down, adapter[f"{module}.A"])
            adapter |= {f"{module}.A": down, f"{module}.B": up}
        return replace(server, adapter=adapter)

    method = replace(
        fedit(),
        name="flexlora",
        about="mean of the products, cut to rank r by singular values",
        citation="arXiv:2402.11505",
        aggregate=aggregate,
        rewrites=True,
    )
    return unequal(method, shares)
