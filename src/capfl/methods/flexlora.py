r"""FlexLoRA: the mean of the products, cut to the adapter's rank by its singular values.

Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources,
arXiv:2402.11505. Here all clients have the same rank r.

:math:`\sum_k p_k B_k A_k = U S V^\top`; clients go on from :math:`B = U_r S_r`, :math:`A = V_r^\top`.
What is cut off is the aggregation error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from capfl import adapter as algebra
from capfl.maths.products import Products
from capfl.methods.base import Method
from capfl.methods.fedit import fedit
from capfl.types import ServerState, Update


def flexlora() -> Method:
    """FedIT with another mean. All updates of a round are in the server's memory at once."""

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        heard = list(updates)
        products = Products(server.whole, [(update.adapter, update.n_train) for update in heard])
        adapter = dict(server.adapter)
        for module, rank in algebra.ranks(server.adapter).items():
            up, down = products.truncated(module, rank)
            adapter |= {f"{module}.A": down, f"{module}.B": up}
        return replace(server, adapter=adapter)

    return replace(
        fedit(),
        name="flexlora",
        about="mean of the products, cut to rank r by singular values",
        citation="arXiv:2402.11505",
        aggregate=aggregate,
    )
