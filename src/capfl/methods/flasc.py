r"""FLASC: the largest values down, dense local training, the largest changes up, an optimiser at the server.

Kuo et al., Federated LoRA with Sparse Communication, arXiv:2406.05233.

With :math:`T_d` the :math:`d P` largest of all P values of an adapter, client k trains every value, from
:math:`\theta_0 = T_{d\downarrow}(\theta_g)` to :math:`\theta_k`, and sends :math:`T_{d\uparrow}(\theta_k - \theta_0)`.
The server takes minus the mean of these for a gradient g:

.. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
          \theta_g \leftarrow \theta_g - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}.

Nothing is carried over. :math:`T_{d\uparrow}` is the codec's: without codec settings it is that of the paper, ``mask =
top, scope = global, density = 0.25, values = fp32, compensation = off``, and the downlink is exact. Settings that are
given hold (``Config``), but a random mask is refused. Weights are :math:`p_k \propto n_k`, weight decay is nil, and
what is scored is what clients know, the masked adapter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from capfl import adapter as algebra
from capfl.methods.base import Method
from capfl.methods.fedit import fedit
from capfl.types import Adapter, ServerState, Update
from capfl.wire.layout import Layout
from capfl.wire.select import top_of_all

START_DENSITY, RATE = 0.25, 1e-3
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def flasc(start_density: float = START_DENSITY, rate: float = RATE) -> Method:
    """``start_density`` is what clients start from, ``rate`` eta. The server's notes have its moments m and v."""

    def aggregate(server: ServerState, updates: Iterable[Update]) -> ServerState:
        change = algebra.weighted_mean((update.adapter, update.n_train) for update in updates)
        round, stepped, notes = server.round + 1, {}, dict(server.notes)
        for name, theta in server.adapter.items():
            g = -change[name].flatten() if name in change else theta.new_zeros(theta.numel())
            m = BETA_1 * server.notes[f"m/{name}"] + (1 - BETA_1) * g
            v = BETA_2 * server.notes[f"v/{name}"] + (1 - BETA_2) * g.square()
            notes |= {f"m/{name}": m, f"v/{name}": v}
            step = (m / (1 - BETA_1**round)) / ((v / (1 - BETA_2**round)).sqrt() + EPSILON)
            stepped[name] = theta - rate * step.reshape(theta.shape)
        return replace(server, adapter=stepped, notes=notes)

    return replace(
        fedit(),
        name="flasc",
        about="largest values down, dense training, AdamW at the server",
        citation="arXiv:2406.05233",
        travels="the largest of A and B",
        exact=None,
        init_server=lambda init: ServerState(
            0, init, notes={f"{moment}/{name}": t.new_zeros(t.numel()) for moment in "mv" for name, t in init.items()}
        ),
        broadcast=lambda server: largest(server.adapter, start_density),
        aggregate=aggregate,
        rewrites=True,
    )


def largest(adapter: Adapter, density: float) -> Adapter:
    """The share of all values that are largest in magnitude; zero in place of the others."""
    layout = Layout.of(adapter, adapter)
    flat = layout.flatten(adapter)
    kept = top_of_all(flat, density, layout)
    masked = np.zeros_like(flat)
    masked[kept] = flat[kept]
    return layout.unflatten(masked)
