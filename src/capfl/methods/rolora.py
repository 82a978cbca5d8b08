r"""RoLoRA: in turn, one factor is trained and averaged while the other stands still.

Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA, arXiv:2502.01755.

Odd rounds train B, :math:`\sum_k p_k B_k A_g`, even rounds A, :math:`B_g \sum_k p_k A_k`: either mean is exact. B comes
first, because with B = 0 no gradient reaches A.
"""

from __future__ import annotations

from dataclasses import replace

from capfl import adapter as algebra
from capfl.methods.base import Method
from capfl.methods.fedit import fedit
from capfl.types import Adapter, ClientState, Trained


def rolora() -> Method:
    """The factor that was trained travels up; a difference down has the one that changed, a whole adapter both."""

    def collect(start: Adapter, trained: Trained, memory: ClientState) -> tuple[Adapter, ClientState]:
        change = algebra.subtract(trained.adapter, start)
        return {name: t for name, t in change.items() if bool(t.any())}, memory

    return replace(
        fedit(),
        name="rolora",
        about="B and A trained and averaged in turn",
        citation="arXiv:2502.01755",
        travels="B and A in turn",
        exact=True,
        trainable=lambda round, name: name.endswith(".B" if round % 2 else ".A"),
        collect=collect,
    )
