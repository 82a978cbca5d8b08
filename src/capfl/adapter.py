"""Pure algebra on adapters. Nothing here changes its arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from capfl.rng import stream
from capfl.types import Adapter


def drawn(shapes: Mapping[str, Sequence[int]], seed: int, *keys: int) -> Adapter:
    """A from Kaiming-uniform with PEFT's bound 1/sqrt(d_in), B = 0: nothing is added to the base.

    Args:
        shapes: of the factors, by name.
        keys: what tells one draw under a seed from another; none for the adapter that a run begins with.
    """
    adapter: Adapter = {}
    for name, shape in shapes.items():
        if name.endswith(".A"):
            bound = 1.0 / np.sqrt(shape[1])
            values = stream(seed, "init", name, *keys).uniform(-bound, bound, tuple(shape))
            adapter[name] = torch.from_numpy(values.astype(np.float32))
        else:
            adapter[name] = torch.zeros(*shape)
    return adapter


def zeros(a: Adapter) -> Adapter:
    """Zeros in the shapes of an adapter."""
    return {name: torch.zeros_like(t) for name, t in a.items()}


def add(a: Adapter, b: Adapter) -> Adapter:
    """a + b on the names of a; a name that b lacks counts as zero.

    Raises:
        KeyError: b has a name that a lacks, so part of it would be lost.
    """
    if unknown := sorted(b.keys() - a.keys()):
        raise KeyError(f"adapter has no tensor named {unknown[0]!r}")
    return {name: t + b[name] if name in b else t for name, t in a.items()}


def subtract(a: Adapter, b: Adapter) -> Adapter:
    """a - b, on the names of a."""
    return {name: t - b[name] for name, t in a.items()}


def scaled(a: Adapter, factor: float) -> Adapter:
    """factor a."""
    return {name: factor * t for name, t in a.items()}


def between(a: Adapter, b: Adapter, share: float) -> Adapter:
    """a + share (b - a), on the names of a; exactly a or b at the ends."""
    if share in (0, 1):
        return b if share else a
    return {name: t + share * (b[name] - t) for name, t in a.items()}


def copy(a: Adapter) -> Adapter:
    """Tensors of their own, detached from any graph, on the CPU, in float32."""
    return {name: t.detach().to("cpu", torch.float32, copy=True) for name, t in a.items()}


class Mean:
    """A weighted mean of adapters that come one at a time, so that they need not be in memory together.

    Summed in float64 in the order given; the mean of one part is that part, bit for bit. A name that a part lacks
    counts as zero.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sums: Adapter = {}

    def add(self, part: Adapter, weight: float) -> None:
        """Raises ValueError: the weight is not positive."""
        if not weight > 0:
            raise ValueError(f"cannot average adapters with weight {weight}")
        self.weight += weight
        for name, t in part.items():
            scaled = t.double() * weight
            self._sums[name] = self._sums[name].add_(scaled) if name in self._sums else scaled

    def value(self) -> Adapter:
        """sum_k w_k a_k / sum_k w_k. Raises ValueError: no parts."""
        if not self.weight:
            raise ValueError("cannot average no adapters")
        return {name: (t / self.weight).float() for name, t in self._sums.items()}


def factor(a: Adapter, which: str) -> Adapter:
    """The tensors A or B of all modules."""
    return {name: t for name, t in a.items() if name.endswith(f".{which}")}


def moved(change: Adapter) -> Adapter:
    """The tensors of a change of those factors, A or B, that have a tensor that is not zero."""
    which = {name.rpartition(".")[2] for name, t in change.items() if bool(t.any())}
    return {name: t for name, t in change.items() if name.rpartition(".")[2] in which}


def is_idle(a: Adapter) -> bool:
    """Does an adapter change nothing? Its B and patches are zero then, as at the start."""
    return not any(bool(t.any()) for name, t in a.items() if not name.endswith(".A"))


def unpatched(a: Adapter) -> Adapter:
    """The factors, without what is added to the base itself."""
    return {name: t for name, t in a.items() if not name.endswith(".W")}


def blank(a: Mapping[str, Tensor]) -> Adapter:
    """A patch ``MODULE.W`` (d_out, d_in) of zeros for every module of an adapter: one zero each, expanded."""
    return {f"{module}.W": up.new_zeros(1).expand(len(up), down.shape[1]) for module, down, up in factors(a)}


def factors(a: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module, A, B) of every complete pair, in the adapter's order. A is (r, d_in), B is (d_out, r)."""
    for name, t in a.items():
        module, _, factor = name.rpartition(".")
        if factor == "A" and f"{module}.B" in a:
            yield module, t, a[f"{module}.B"]


def ranks(a: Adapter) -> dict[str, int]:
    """The rank of every module, read from its shapes."""
    return {module: t.shape[0] for module, t, _ in factors(a)}


def by_module(values: Tensor, a: Adapter) -> Iterator[tuple[str, Tensor]]:
    """(module, its part) of one value for each rank of all modules, (n,), in the adapter's order."""
    sizes = ranks(a)
    return zip(sizes, values.split(list(sizes.values())), strict=True)


def living(alive: Tensor, a: Adapter) -> list[int]:
    """How many of every module's ranks are alive, by marks (n,)."""
    return [int(part.sum()) for _, part in by_module(alive, a)]


def mean_by_module(values: Tensor, a: Adapter) -> list[float]:
    """Every module's mean of one value for each rank (n,), to four digits."""
    return [float(f"{part.double().mean():.4g}") for _, part in by_module(values, a)]


def without(a: Adapter, dropped: Tensor) -> Adapter:
    """The adapter with zeros in B's columns and A's rows of the ranks dropped, (n,) bool."""
    changed = dict(a)
    for module, gone in by_module(dropped, a):
        if bool(gone.any()):
            down, up = a[f"{module}.A"].clone(), a[f"{module}.B"].clone()
            down[gone], up[:, gone] = 0.0, 0.0
            changed |= {f"{module}.A": down, f"{module}.B": up}
    return changed


def pruned(a: Adapter) -> Adapter:
    """The same update without ranks that add nothing to it: those whose column of B or row of A is all zero.

    A module keeps at least its first rank, because PEFT knows no rank 0.
    """
    kept = dict(a)
    for module, down, up in factors(a):
        used = down.any(1) & up.any(0)
        used[0] |= not used.any()
        kept |= {f"{module}.A": down[used], f"{module}.B": up[:, used]}
    return kept


def padded(a: Adapter, template: Adapter) -> Adapter:
    """The same update in the shapes of a template of higher ranks, with zeros for what ``pruned`` took out.

    Raises:
        ValueError: a tensor is larger than the template's, or not there.
    """
    filled = {}
    for name, t in template.items():
        if name not in a or any(n > m for n, m in zip(a[name].shape, t.shape, strict=True)):
            found = tuple(a[name].shape) if name in a else "missing"
            raise ValueError(f"adapter tensor {name!r}: shape {found} does not fit into {tuple(t.shape)}")
        filled[name] = torch.zeros_like(t)
        filled[name][: a[name].shape[0], : a[name].shape[1]] = a[name]
    return filled


def norm(a: Adapter) -> float:
    """The L2 norm of all elements together, summed in float64."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in a.values()))


def size(a: Adapter) -> int:
    """The number of elements."""
    return sum(t.numel() for t in a.values())
