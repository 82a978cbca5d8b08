r"""FedIT: federated averaging of LoRA factors, and FedProx when alpha_f > 0.

Zhang et al., Towards Building the Federated GPT: Federated Instruction Tuning, arXiv:2305.05644.
Li et al., Federated Optimization in Heterogeneous Networks, arXiv:1812.06127 (the proximal term).

Client k starts from the global factors :math:`\theta_g = (A_g, B_g)` and minimises
:math:`F_k(\theta) + \frac{\alpha_f}{2}\lVert\theta - \theta_g\rVert^2`. The server adds the mean change,
:math:`\theta_g \leftarrow \theta_g + \sum_k p_k (\theta_k - \theta_g)` with :math:`p_k = n_k / \sum_j n_j`.

A and B are averaged each on its own, so the product of the means is not the mean of the products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from capfl import adapter as algebra
from capfl.methods.base import Method
from capfl.types import Adapter, ClientState, Penalty, ServerState, Update


def fedit(alpha_f: float = 0.0) -> Method:
    """FedIT (``alpha_f = 0``) or FedProx on the LoRA factors (``alpha_f > 0``)."""

    def proximal(received: Adapter, memory: ClientState) -> Penalty:
        return Penalty(lambda now, received: alpha_f / 2 * algebra.squared_distance(now, received), received)

    return Method(
        name="fedit",
        about="mean of A and mean of B" + (", held near the global adapter" if alpha_f else ""),
        citation="arXiv:1812.06127" if alpha_f else "arXiv:2305.05644",
        travels="A and B",
        exact=False,
        init_server=lambda init: ServerState(0, init),
        init_client=lambda client, init: ClientState(client),
        broadcast=lambda server: server.adapter,
        install=lambda received, memory: received,
        trainable=lambda round, name: True,
        penalty=proximal if alpha_f else None,
        collect=lambda start, trained, memory: (algebra.subtract(trained.adapter, start), memory),
        aggregate=add_mean_change,
    )


def add_mean_change(server: ServerState, updates: Iterable[Update]) -> ServerState:
    """theta_g + sum_k p_k delta_k with p_k proportional to the clients' numbers of training items."""
    change = algebra.weighted_mean((update.adapter, update.n_train) for update in updates)
    return replace(server, adapter=algebra.add(server.adapter, change))
