"""Weighted means of products B A: as stacked factors, and as the matrix itself where a base is patched with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.types import Adapter


class Products:
    """M = sum_k p_k B_k A_k of every module, with p_k proportional to the weights, as stacked factors in float64.

    No (d_out, d_in) matrix is ever formed.

    Args:
        parts: factors of each client, one at least, and its weight.
    """

    def __init__(self, parts: Sequence[tuple[Adapter, float]]) -> None:
        total = sum(weight for _, weight in parts)
        self._up: dict[str, Tensor] = {}
        self._down: dict[str, Tensor] = {}
        for module in algebra.ranks(parts[0][0]):
            self._up[module] = torch.cat([w / total * part[f"{module}.B"].double() for part, w in parts], dim=1)
            self._down[module] = torch.cat([part[f"{module}.A"].double() for part, _ in parts])

    def times(self, module: str, right: Tensor) -> Tensor:
        """M right, (d_out, n) for ``right`` (d_in, n)."""
        return self._up[module] @ (self._down[module] @ right)

    def truncated(self, module: str, rank: int) -> tuple[Tensor, Tensor]:
        """The nearest B (d_out, rank) and A (rank, d_in) in the Frobenius norm, float32; the rows of A are of length 1.

        Eckart & Young 1936, by the singular values of the small matrix between two QR decompositions. Singular vectors
        have the sign that makes the largest element of a row of A positive, so that equal input is equal output.
        """
        left, upper = torch.linalg.qr(self._up[module])
        right, lower = torch.linalg.qr(self._down[module].T)
        u, s, vt = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        n = min(rank, len(s))
        up, down = left @ u[:, :n] * s[:n], vt[:n] @ right.T
        sign = torch.gather(down, 1, down.abs().argmax(1, keepdim=True)).sign()
        sign[sign == 0] = 1
        up, down = up * sign.T, down * sign
        if n < rank:
            up = torch.cat([up, up.new_zeros(len(up), rank - n)], dim=1)
            down = torch.cat([down, down.new_zeros(rank - n, down.shape[1])])
        return up.float(), down.float()


class MeanProduct:
    """sum_k p_k B_k A_k of every module, ``MODULE.W`` (d_out, d_in) in float32, of parts that come one by one.

    What is summed up takes as much memory as a patch, however many parts there are.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._sums: Adapter = {}

    def add(self, part: Adapter, weight: float) -> None:
        """Add one client's factors."""
        self._weight += weight
        for module, down, up in algebra.factors(part):
            name = f"{module}.W"
            if name in self._sums:
                self._sums[name].addmm_(up * weight, down)
            else:
                self._sums[name] = (up * weight) @ down

    def value(self) -> Adapter:
        """The mean of one part at least, once: the memory of the sums is handed on."""
        sums, self._sums = self._sums, {}
        return {name: t.div_(self._weight) for name, t in sums.items()}
