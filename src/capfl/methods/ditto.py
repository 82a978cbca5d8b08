r"""Ditto: a global model by federated averaging, and a personal one that is held near to it.

Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, arXiv:2012.04221.

Beside its part in FedIT, client k takes as many steps on its own adapter :math:`v_k`, which never travels, with
:math:`F_k(v) + \frac{\lambda}{2} \lVert v - \theta_g \rVert^2`. Local training takes twice as long.
"""

from __future__ import annotations

from dataclasses import replace

from capfl import adapter as algebra
from capfl.methods.base import Method
from capfl.methods.fedit import fedit
from capfl.types import Adapter, ClientState, Penalty


def ditto(strength: float) -> Method:
    """``strength`` is lambda; the paper chooses it among 0.1, 1 and 2 on validation data."""

    def private(received: Adapter, memory: ClientState) -> tuple[Adapter, Penalty]:
        term = Penalty(lambda now, received: strength / 2 * algebra.squared_distance(now, received), received)
        return memory.adapter, term

    return replace(
        fedit(),
        name="ditto",
        about="FedIT, and a private adapter held near the global one",
        citation="arXiv:2012.04221",
        init_client=lambda client, init: ClientState(client, adapter=init),
        private=private,
        personal=lambda memory: memory.adapter,
    )
