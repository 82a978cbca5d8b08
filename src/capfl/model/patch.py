"""What a method adds to the base itself: while an adapter has a patch, its modules work with weight + patch.

The weights that were loaded are never written to, so taking a patch off gives the same bits, and nothing is allocated
for adapters without one. A weight in float32 is replaced by the sum; where that would round the patch away, in half
precision or a quantised base, the patch is a second product beside the module's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Patch:
    """The patch of one adapted module.

    Args:
        module: as PEFT has wrapped it.
        scale: what a patch (d_out, d_in) is multiplied by.
        transposed: is the weight (d_in, d_out)?
    """

    def __init__(self, module: Any, scale: float, transposed: bool) -> None:
        self._module, self._scale, self._transposed = module, scale, transposed
        self._undo: Callable[[], None] | None = None

    @torch.no_grad()
    def write(self, patch: Tensor | None) -> None:
        """Work with a patch (d_out, d_in) from now on, or with none."""
        if self._undo is not None:
            self._undo()
            self._undo = None
        if patch is None:
            return
        weight: nn.Parameter = self._module.get_base_layer().weight
        scaled = self._scale * patch.to(weight.device)
        if weight.dtype == torch.float32:
            self._undo = partial(setattr, weight, "data", weight.data)
            weight.data = weight.data + (scaled.T if self._transposed else scaled)
        else:
            self._undo = self._module.register_forward_hook(partial(_plus_product, scaled)).remove


def _plus_product(patch: Tensor, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + F.linear(args[0].to(patch.dtype), patch).to(output.dtype)
