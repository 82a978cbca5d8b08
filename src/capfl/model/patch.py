"""What a method adds to the base itself: while an adapter has a patch, its modules work with weight + patch.

The weights that were loaded are never written to, so taking a patch off gives the same bits, and nothing is allocated
for adapters without one. A weight in float32 is replaced by the sum; where that would round the patch away, in half
precision or a quantised base, the patch is a second product beside the module's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle


class Patch:
    """The patch of one adapted module.

    Args:
        module: as PEFT has wrapped it.
        scale: what a patch (d_out, d_in) is multiplied by.
        transposed: is the weight (d_in, d_out)?
    """

    def __init__(self, module: Any, scale: float, transposed: bool) -> None:
        self._module, self._scale, self._transposed = module, scale, transposed
        self._weight: nn.Parameter = module.get_base_layer().weight
        self._clean: Tensor | None = None  # the weight as it was loaded, while another is in its place
        self._hook: RemovableHandle | None = None

    @torch.no_grad()
    def write(self, patch: Tensor | None) -> None:
        """Work with a patch (d_out, d_in) from now on, or with none."""
        if self._clean is not None:
            self._weight.data, self._clean = self._clean, None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if patch is None:
            return
        scaled = self._scale * patch.to(self._weight.device)
        if self._weight.dtype == torch.float32:
            self._clean = self._weight.data
            self._weight.data = self._clean + (scaled.T if self._transposed else scaled)
        else:
            self._hook = self._module.register_forward_hook(_Beside(scaled))


class _Beside:
    """A forward hook that adds x W^T."""

    def __init__(self, patch: Tensor) -> None:
        self._patch = patch

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + F.linear(args[0].to(self._patch.dtype), self._patch).to(output.dtype)
