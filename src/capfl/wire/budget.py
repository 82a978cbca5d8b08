"""How many elements of each rank, or of each tensor, a message has; and the importance of ranks as bytes.

A rank is a row of A and the column of B that goes with it. Importance is sent in the place of positions. Writer and
reader share out the budget by what was read, so they agree to the last element.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from capfl.errors import WireError
from capfl.maths.budget import allocate
from capfl.wire import records
from capfl.wire.layout import Floats, Ints, Layout
from capfl.wire.records import vector
from capfl.wire.scales import Doubles

_LEAST = 2.0**-100  # of the largest importance: what is not zero stays so


@dataclass(frozen=True)
class Budget:
    """A message's elements in n groups, the ranks of the agreed adapter or the tensors of the message.

    Attributes:
        owner: the group of each run of elements, (runs,): a rank of a tensor, or a tensor.
        lengths: elements of each run, (runs,).
        sizes: how many elements each group has, (n,).
        counts: how many of them are sent, (n,).
    """

    owner: Ints
    lengths: Ints
    sizes: Ints
    counts: Ints

    @staticmethod
    def by_tensor(density: float, layout: Layout) -> Budget:
        """The same share of every tensor: round(density * size of the message) elements in all."""
        sizes = layout.sizes
        return Budget(
            np.arange(len(sizes)), sizes, sizes, allocate(np.ones(len(sizes)), sizes, round(density * layout.size))
        )

    @staticmethod
    def by_rank(importance: Doubles, density: float, layout: Layout, whole: Layout) -> Budget:
        """The budget that has of every rank in proportion to its importance (n,), and nothing of importance 0.

        In all density * size of the ranks of any importance: a sender of half the ranks sends half as much.
        """
        owner, lengths = layout.owners(whole), layout.rank_sizes
        sizes: Ints = np.bincount(owner, lengths, minlength=whole.n_ranks).astype(np.int64)
        return Budget(
            owner, lengths, sizes, allocate(importance, sizes, round(density * int(sizes[importance > 0].sum())))
        )

    def share(self) -> Floats:
        """What share of its group is sent, for every run, (runs,); 1 where nothing is."""
        shares = np.where(self.counts > 0, self.counts / np.maximum(self.sizes, 1), 1.0)
        found: Floats = shares.astype(np.float32)[self.owner]
        return found


@dataclass(frozen=True)
class _Importance:
    """Importance of the ranks that have any, in units of the largest. ``marked``: which they are, (n,); None: all."""

    values: torch.Tensor = vector("positive")
    marked: torch.Tensor | None = vector("marks", optional=True)


def write_importance(importance: npt.ArrayLike, n: int) -> bytes:
    """The importance (n,) of ranks as bytes, in units of the largest.

    Raises:
        WireError: another shape, or a number that is negative or not finite, or no number that is not zero.
    """
    numbers = np.asarray(importance, np.float64)
    if numbers.shape != (n,):
        raise WireError(f"importance has shape {numbers.shape}, the adapter has {n} ranks")
    if not np.isfinite(numbers).all() or (numbers < 0).any() or not numbers.any():
        raise WireError("the importance of a rank is negative or not finite, or that of all is zero")
    marked = numbers > 0
    values = torch.from_numpy(np.maximum(numbers[marked] / numbers.max(), _LEAST))
    return records.write(_Importance(values, marked=None if marked.all() else torch.from_numpy(marked)))


def read_importance(data: memoryview, n: int) -> Doubles:
    """What arrives of the importance that ``write_importance`` was given, (n,).

    Raises:
        WireError: the bytes are not the importance of so many ranks.
    """
    said = records.read(data, _Importance)
    marked = np.ones(n, np.bool_) if said.marked is None else said.marked.numpy().astype(np.bool_)
    if len(marked) != n or marked.sum() != len(said.values):
        marks = f"{marked.sum()} of {len(marked)} are marked"
        raise WireError(f"importance is of {len(said.values)} ranks, and {marks}; the adapter has {n}")
    found = np.zeros(n)
    found[marked] = said.values.numpy()
    return found
