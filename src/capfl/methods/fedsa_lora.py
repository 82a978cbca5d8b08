r"""FedSA-LoRA: A is averaged, B stays with the client.

Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, arXiv:2410.01463.

Client k trains :math:`(A_g, B_k)`; the server adds the mean change of A, :math:`A_g \leftarrow A_g + \sum_k p_k
\Delta A_k`. The personal model is :math:`B_k A_g`, here after a round of local steps as for every method that has no
other.
"""

from __future__ import annotations

from dataclasses import replace

from capfl import adapter as algebra
from capfl.methods.base import Method
from capfl.methods.fedit import fedit
from capfl.types import Adapter, ClientState, Trained


def fedsa_lora() -> Method:
    """Only A travels."""

    def collect(start: Adapter, trained: Trained, memory: ClientState) -> tuple[Adapter, ClientState]:
        change = algebra.subtract(algebra.factor(trained.adapter, "A"), start)
        return change, replace(memory, adapter=trained.adapter)

    return replace(
        fedit(),
        name="fedsa-lora",
        about="A averaged, B private",
        citation="arXiv:2410.01463",
        travels="A",
        exact=True,
        has_global=False,
        init_client=lambda client, init: ClientState(client, adapter=init),
        broadcast=lambda server: algebra.factor(server.adapter, "A"),
        install=lambda received, memory: memory.adapter | received,
        collect=collect,
    )
