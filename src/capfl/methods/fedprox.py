r"""FedProx on LoRA factors: FedIT with a local loss that holds clients to the global adapter.

Li et al., Federated Optimization in Heterogeneous Networks, arXiv:1812.06127.

Client k minimises :math:`F_k(\theta) + \frac{\alpha_f}{2} \lVert \theta - \theta_g \rVert^2`; the rest is FedIT's.
"""

from __future__ import annotations

from dataclasses import replace

from capfl.methods.base import Method
from capfl.methods.fedit import fedit


def fedprox(alpha_f: float) -> Method:
    """``fedit(alpha_f)`` by its own name."""
    return replace(fedit(alpha_f), name="fedprox")
