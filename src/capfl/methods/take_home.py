"""What a client takes home when a run ends: its personal model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from capfl.types import Adapter, Penalty


@dataclass(frozen=True)
class AfterSteps:
    """Its group's adapter after one more round of the client's own steps, or some way from the one to the other.

    A client that learns alone has no group to be near to: it takes the whole way (``share`` 1).
    """

    share: float = 1.0

    @property
    def about(self) -> str:
        steps = "one more round of local steps"
        if self.share == 1:
            return f"the newest adapter after {steps}"
        return f"the newest adapter, moved {self.share:g} of the way by {steps}"


@dataclass(frozen=True)
class Own:
    """The adapter that it keeps from round to round, as it is."""

    about = "its own adapter"


@dataclass(frozen=True)
class NearServer:
    r"""Ditto: Li et al., arXiv:2012.04221.

    Beside its part in the federation, client k takes as many steps on its own adapter :math:`v_k`, which never travels,
    for :math:`F_k(v) + \frac{\lambda}{2} \lVert v - \theta_g \rVert^2`. Training takes twice as long. The paper
    chooses :math:`\lambda` (``strength``) among 0.1, 1 and 2.
    """

    strength: float = 0.1
    about = "its own adapter, held near the server's"

    def penalty(self, received: Adapter) -> Penalty:
        return proximal(self.strength, received)


TakeHome = AfterSteps | Own | NearServer


def proximal(strength: float, received: Adapter) -> Penalty:
    r"""Towards the server's adapter: the proximal operator of strength / 2 ||theta - theta_g||^2.

    :math:`\theta_g + (\theta - \theta_g) / (1 + \eta \cdot strength)` with the learning rate :math:`\eta`, for the
    factors that are trained and travel. The term is that of FedProx, arXiv:1812.06127.
    """

    def step(now: Adapter, held: Mapping[str, Tensor], rate: float) -> Adapter:
        kept = 1 / (1 + rate * strength)
        return {name: held[name] + kept * (t - held[name]) if name in held else t for name, t in now.items()}

    return Penalty(step, received)
