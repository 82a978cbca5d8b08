r"""FFA-LoRA: A stays what the seed made it, B is trained and averaged.

Sun et al., Improving LoRA in Privacy-preserving Federated Learning, arXiv:2403.12313.

:math:`\sum_k p_k B_k A_0 = (\sum_k p_k B_k) A_0`, so the mean of the factors is the mean of the products.
"""

from __future__ import annotations

from dataclasses import replace

from capfl import adapter as algebra
from capfl.methods.base import Method
from capfl.methods.fedit import fedit
from capfl.types import Adapter, ClientState, Trained


def ffa_lora() -> Method:
    """Only B travels. A client has A_0 of the seed in its memory."""

    def install(received: Adapter, memory: ClientState) -> Adapter:
        return memory.adapter | received

    def collect(start: Adapter, trained: Trained, memory: ClientState) -> tuple[Adapter, ClientState]:
        return algebra.subtract(algebra.factor(trained.adapter, "B"), start), memory

    return replace(
        fedit(),
        name="ffa-lora",
        about="A frozen at its random start, B averaged",
        citation="arXiv:2403.12313",
        travels="B",
        exact=True,
        init_client=lambda client, init: ClientState(client, adapter=init),
        broadcast=lambda server: algebra.factor(server.adapter, "B"),
        install=install,
        trainable=lambda round, name: name.endswith(".B"),
        collect=collect,
    )
