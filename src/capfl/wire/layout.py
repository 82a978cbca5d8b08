"""An adapter as one vector, rank by rank, so that positions are whole numbers and a rank is a run of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from capfl.errors import WireError
from capfl.types import Adapter

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors in a message, in the order of the template.

    Each tensor is flattened rank by rank: the rows of A (r, d_in), the columns of B (d_out, r).
    """

    shapes: tuple[tuple[str, tuple[int, int]], ...]

    @staticmethod
    def of(names: Adapter, template: Adapter) -> Layout:
        """The layout of an adapter that has the tensors of ``names`` in the shapes of ``template``.

        Raises:
            WireError: a name or a shape is not the template's.
        """
        if unknown := sorted(names.keys() - template.keys()):
            raise WireError(f"{unknown[0]!r} is not in the adapter that both sides agreed on")
        for name, t in names.items():
            if t.shape != template[name].shape:
                raise WireError(f"{name!r} has shape {tuple(t.shape)}, expected {tuple(template[name].shape)}")
        return Layout(tuple((name, (len(t), t.shape[1])) for name, t in template.items() if name in names))

    @cached_property
    def sizes(self) -> Ints:
        """Elements of every tensor, (tensors,)."""
        return np.array([a * b for _, (a, b) in self.shapes], np.int64)

    @cached_property
    def starts(self) -> Ints:
        """Where every tensor begins, (tensors,)."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def size(self) -> int:
        return int(self.sizes.sum())

    @property
    def n_ranks(self) -> int:
        """How many ranks all modules have together; a layout of whole modules."""
        return sum(shape[0] for name, shape in self.shapes if name.endswith(".A"))

    def owners(self, whole: Layout) -> Ints:
        """The rank that each element belongs to, (size,): its number among those of all modules of ``whole``."""
        first, n = dict[str, int](), 0
        for name, (r, _) in whole.shapes:
            if name.endswith(".A"):
                first[name.removesuffix(".A")], n = n, n + r
        ranks = [np.zeros(0, np.int64)]
        ranks += [first[name[:-2]] + np.arange(shape[_axis(name)], dtype=np.int64) for name, shape in self.shapes]
        owners: Ints = np.repeat(np.concatenate(ranks), np.diff(self.rank_starts, append=self.size))
        return owners

    @cached_property
    def rank_starts(self) -> Ints:
        """Where every rank of every tensor begins, (ranks,)."""
        parts = [
            start + np.arange(shape[_axis(name)], dtype=np.int64) * shape[1 - _axis(name)]
            for (name, shape), start in zip(self.shapes, self.starts, strict=True)
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def flatten(self, adapter: Adapter) -> Floats:
        """(size,) values."""
        if not self.shapes:
            return np.zeros(0, np.float32)
        parts = [(adapter[name].T if _axis(name) else adapter[name]).reshape(-1) for name, _ in self.shapes]
        flat: Floats = torch.cat([t.detach().to("cpu", torch.float32) for t in parts]).numpy()
        return flat

    def unflatten(self, flat: Floats) -> Adapter:
        """The adapter whose values these are. Tensors of their own, float32."""
        adapter: Adapter = {}
        for (name, (a, b)), start, size in zip(self.shapes, self.starts, self.sizes, strict=True):
            piece = torch.from_numpy(flat[start : start + size])
            adapter[name] = (piece.reshape(b, a).T if _axis(name) else piece.reshape(a, b)).clone().contiguous()
        return adapter


def _axis(name: str) -> int:
    """The dimension that counts ranks: 0 in A, 1 in B."""
    return int(name.endswith(".B"))
