"""Error compensation: what a message does not carry is carried over to the next one.

Seide et al., 1-Bit Stochastic Gradient Descent, Interspeech 2014; Karimireddy et al., Error Feedback Fixes SignSGD,
arXiv:1901.09847. With e the residual, a change d goes out as C(d + e), and e becomes d + e - C(d + e), so that over
any number of rounds what was sent and what is left sum to what changed, quantisation included.
"""

from __future__ import annotations

from capfl import adapter as algebra
from capfl.types import Adapter
from capfl.wire.codec import Codec
from capfl.wire.layout import Bools
from capfl.wire.scales import Doubles


def compensate(
    change: Adapter,
    residual: Adapter,
    codec: Codec,
    template: Adapter,
    round: int,
    importance: Doubles | None = None,
    alive: Bools | None = None,
) -> tuple[bytes, Adapter]:
    """The body that carries a change, and the new residual. Tensors that did not change keep their residual.

    Raises:
        WireError: as ``Codec.encode``.
    """
    whole = {name: t + residual[name] if name in residual else t for name, t in change.items()}
    body = codec.encode(whole, template, round, importance, alive)
    left = algebra.subtract(whole, codec.decode(memoryview(body), template, round))
    kept = residual | left
    return body, {name: t for name, t in kept.items() if bool(t.any())}
