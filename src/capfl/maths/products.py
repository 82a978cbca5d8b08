"""Weighted means of products B A, from their factors: no (d_out, d_in) matrix is ever formed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.types import Adapter


class Products:
    """M = sum_k p_k B_k A_k of every module, with p_k proportional to the weights, as stacked factors in float64.

    Args:
        start: what the changes were made to.
        changes: of each client, any of the factors, and its weight.

    Raises:
        ValueError: no changes.
    """

    def __init__(self, start: Adapter, changes: Sequence[tuple[Adapter, float]]) -> None:
        if not changes:
            raise ValueError("cannot average no products")
        total = sum(weight for _, weight in changes)
        parts = [(weight / total, algebra.add(start, change)) for change, weight in changes]
        self._up: dict[str, Tensor] = {}
        self._down: dict[str, Tensor] = {}
        for module in algebra.ranks(start):
            self._up[module] = torch.cat([p * part[f"{module}.B"].double() for p, part in parts], dim=1)
            self._down[module] = torch.cat([part[f"{module}.A"].double() for _, part in parts])

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

    def error(self, adapter: Adapter) -> float:
        """||M - B A||_F / ||M||_F over all modules for the B and A of an adapter; 0 if M is."""
        apart = whole = 0.0
        for module, down, up in algebra.factors(adapter):
            whole += _square(self._up[module], self._down[module])
            stacked = torch.cat([self._up[module], -up.double()], dim=1), torch.cat([self._down[module], down.double()])
            apart += _square(*stacked)
        return (max(apart, 0.0) / whole) ** 0.5 if whole > 0 else 0.0


def _square(up: Tensor, down: Tensor) -> float:
    """||up down||_F^2 from the Gram matrices of the factors."""
    return float(((up.T @ up) * (down @ down.T)).sum())
