r"""How the updates of a group become its next adapter: folds over the updates of a round.

A fold is started with the group's adapter, is given every update as it arrives, and has a value in the end. With
:math:`\theta_g = (A_g, B_g)` the group's adapter, :math:`\Delta_k` the change of client k, and
:math:`p_k = n_k / \sum_j n_j` for n_k training items:

``WeightedMean``: :math:`\theta_g + \sum_k p_k \Delta_k`, factor by factor: federated averaging. The product of the
means is not the mean of the products, which the others are about.

``CorrectedB``: the mean, and then B moved towards the mean of the products (LoRA-FAIR).

``TruncatedProduct``: the mean of the products, cut to the adapter's rank (FlexLoRA).

``ExactProduct``: the mean, and what it misses of the mean of the products as a patch of the base (FedEx-LoRA).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.maths.products import MeanProduct, Products
from capfl.types import Adapter


class Fold(Protocol):
    """The aggregation of one group in one round."""

    def add(self, change: Adapter, weight: float, ranks: Tensor | None = None) -> None:
        """Take one client's change. ``ranks`` (n,) bool are the ranks that the client has; None: all."""

    def value(self) -> Adapter:
        """The group's next adapter. Without any update it is the one that the fold was started with."""


class Combine:
    """Makes folds.

    Attributes:
        about: one line for lists of methods.
        adds_mean: is the value the adapter plus one mean of the changes, for which another mean can stand?
        passes_one: is the value of a single update the adapter plus that change?
        relays: every client is sent the others' updates as they came, and folds them itself.
        rewrites: the fold changes elements that no client has sent, so its value is sent down in full.
    """

    about: str = ""
    adds_mean: bool = False
    passes_one: bool = False
    relays: bool = False
    rewrites: bool = False

    def first(self, initial: Adapter) -> Adapter:
        """The server's adapter before round 1."""
        return initial

    def start(self, adapter: Adapter, round: int) -> Fold:
        raise NotImplementedError


@dataclass(frozen=True)
class WeightedMean(Combine):
    """McMahan et al., arXiv:1602.05629; of LoRA factors: FedIT, Zhang et al., arXiv:2305.05644.

    Attributes:
        step: what the mean change is multiplied by (the server's learning rate of Reddi et al., arXiv:2003.00295).
    """

    step: float = 1.0
    about = "mean of A, mean of B"
    adds_mean = True

    @property
    def passes_one(self) -> bool:  # type: ignore[override]
        return self.step == 1

    def start(self, adapter: Adapter, round: int) -> Fold:
        return _Mean(adapter, self.step)


class _Mean:
    def __init__(self, adapter: Adapter, step: float = 1.0) -> None:
        self._adapter, self._mean, self._step = adapter, algebra.Mean(), step

    def add(self, change: Adapter, weight: float, ranks: Tensor | None = None) -> None:
        self._mean.add(change, weight)

    def value(self) -> Adapter:
        if not self._mean.weight:
            return self._adapter
        mean = self._mean.value()
        return algebra.add(self._adapter, mean if self._step == 1 else algebra.scaled(mean, self._step))


class _Trained:
    """A fold that needs the factors of all clients at the end; they are in memory together."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.parts: list[tuple[Adapter, float]] = []

    def add(self, change: Adapter, weight: float, ranks: Tensor | None = None) -> None:
        factors = algebra.add(self.adapter, change)
        self.parts.append((factors if ranks is None else algebra.without(factors, ~ranks), weight))


@dataclass(frozen=True)
class CorrectedB(Combine):
    r"""LoRA-FAIR: Bian et al., arXiv:2411.14961.

    With :math:`\bar A, \bar B` the means and :math:`M = \sum_k p_k B_k A_k`, the server adds to :math:`\bar B`

    .. math:: \arg\min_{\Delta B} \lVert M - (\bar B + \Delta B) \bar A \rVert_F^2 + \lambda \lVert \Delta B \rVert_F^2
              = (M - \bar B \bar A) \bar A^\top (\bar A \bar A^\top + \lambda I)^{-1}.

    The paper maximises a cosine similarity in place of the first term, by gradient descent; the Frobenius norm has this
    closed form. :math:`\lambda` is in units of the mean of the diagonal of :math:`\bar A \bar A^\top`. B is corrected
    in the elements that some client has sent: docs/adr/0009.
    """

    about = "mean of A, mean of B, then B moved towards the mean of B A"
    strength: float = 0.01

    def start(self, adapter: Adapter, round: int) -> Fold:
        return _Corrected(adapter, self.strength)


class _Corrected(_Trained):
    def __init__(self, adapter: Adapter, strength: float) -> None:
        super().__init__(adapter)
        self._mean, self._strength = _Mean(adapter), strength

    def add(self, change: Adapter, weight: float, ranks: Tensor | None = None) -> None:
        super().add(change, weight, ranks)
        self._mean.add(change, weight)

    def value(self) -> Adapter:
        mean = self._mean.value()
        if not self.parts:
            return mean
        products, refined = Products(self.parts), dict(mean)
        for module, down, up in algebra.factors(mean):
            a, b = down.double(), up.double()
            gram = a @ a.T
            missing = products.times(module, a.T) - b @ gram
            ridge = gram + self._strength * gram.diagonal().mean() * torch.eye(len(a), dtype=torch.float64)
            corrected = (b + torch.linalg.solve(ridge, missing.T).T).float()
            sent = up != self.adapter[f"{module}.B"]
            refined[f"{module}.B"] = torch.where(sent, corrected, up)
        return refined


@dataclass(frozen=True)
class TruncatedProduct(Combine):
    r"""FlexLoRA: Bai et al., arXiv:2402.11505.

    :math:`\sum_k p_k B_k A_k = U S V^\top`, and the next adapter is :math:`B = U_r S_r`, :math:`A = V_r^\top`. Clients
    of any rank take part. A rank that the sum does not have keeps its row of A, so that it can be trained again.
    """

    about = "mean of B A, cut to rank r by its singular values"
    rewrites = True

    def start(self, adapter: Adapter, round: int) -> Fold:
        return _Truncated(adapter)


class _Truncated(_Trained):
    def value(self) -> Adapter:
        if not self.parts:
            return self.adapter
        products, cut = Products(self.parts), dict(self.adapter)
        for module, rank in algebra.ranks(self.adapter).items():
            up, down = products.truncated(module, rank)
            down = torch.where(down.any(1, keepdim=True), down, cut[f"{module}.A"])
            cut |= {f"{module}.A": down, f"{module}.B": up}
        return cut


@dataclass(frozen=True)
class ExactProduct(Combine):
    r"""FedEx-LoRA: Singhal et al., arXiv:2410.09432.

    .. math:: A \leftarrow \sum_k p_k A_k, \quad B \leftarrow \sum_k p_k B_k, \quad
              W_0 \leftarrow W_0 + s \Bigl(\sum_k p_k B_k A_k - B A\Bigr).

    With m clients the residual has rank m r at most, so it travels as the clients' updates: the server relays them, and
    each client folds them itself. The paper has 1/m for :math:`p_k`. The residual is summed up as
    :math:`(B_k - B_1)(A_k - A_1)`, which is the same, and nil where all clients agree.
    """

    about = "mean of A, mean of B; the rest of the mean of B A goes into the base"
    relays = True

    def first(self, initial: Adapter) -> Adapter:
        return initial | algebra.blank(initial)

    def start(self, adapter: Adapter, round: int) -> Fold:
        return _Exact(adapter)


class _Exact:
    def __init__(self, adapter: Adapter) -> None:
        self._adapter, self._still = adapter, algebra.zeros(algebra.unpatched(adapter))
        self._mean, self._products = algebra.Mean(), MeanProduct()
        self._first: Adapter = {}

    def add(self, change: Adapter, weight: float, ranks: Tensor | None = None) -> None:
        whole = self._still | change
        self._first = self._first or whole
        self._mean.add(whole, weight)
        self._products.add(algebra.subtract(whole, self._first), weight)

    def value(self) -> Adapter:
        if not self._first:
            return self._adapter
        missed, mean = self._products.value(), self._mean.value()
        for module, down, up in algebra.factors(algebra.subtract(mean, self._first)):
            missed[f"{module}.W"].addmm_(up, down, alpha=-1)
        return algebra.add(self._adapter, mean | missed)
