"""An adapter as one vector, rank by rank, so that positions are whole numbers and a rank is a run of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from capfl.errors import WireError
from capfl.types import Adapter

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.signedinteger[Any]]
"""Positions of elements, in 32 bits where these are enough."""

BLOCK = 2**18  # elements that are worked on at once: what they need beside them stays small, and in the cache


@dataclass(frozen=True)
class Block:
    """Ranks of a layout, one after the other, and their elements."""

    ranks: slice
    elements: slice


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

    @cached_property
    def rank_of(self) -> dict[str, int]:
        """How many ranks each module has."""
        return {name[:-2]: shape[_axis(name)] for name, shape in self.shapes}

    @property
    def n_ranks(self) -> int:
        """How many ranks all modules have together; a layout of whole modules."""
        return sum(shape[0] for name, shape in self.shapes if name.endswith(".A"))

    def owners(self, whole: Layout) -> Ints:
        """Whose each rank of each tensor is, (ranks,): its number among the ranks of all modules of ``whole``."""
        first, n = dict[str, int](), 0
        for name, (r, _) in whole.shapes:
            if name.endswith(".A"):
                first[name.removesuffix(".A")], n = n, n + r
        ranks = [np.zeros(0, np.int64)]
        ranks += [first[name[:-2]] + np.arange(shape[_axis(name)], dtype=np.int64) for name, shape in self.shapes]
        return np.concatenate(ranks)

    @cached_property
    def rank_starts(self) -> Ints:
        """Where every rank of every tensor begins, (ranks,)."""
        parts = [
            start + np.arange(shape[_axis(name)], dtype=np.int64) * shape[1 - _axis(name)]
            for (name, shape), start in zip(self.shapes, self.starts, strict=True)
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    @cached_property
    def rank_sizes(self) -> Ints:
        """Elements of every rank of every tensor, (ranks,)."""
        return np.diff(self.rank_starts, append=self.size)

    def blocks(self) -> Iterator[Block]:
        """All ranks, about ``BLOCK`` elements at a time."""
        first = 0
        while first < len(self.rank_starts):
            begin = int(self.rank_starts[first])
            end = max(first + 1, int(np.searchsorted(self.rank_starts, begin + BLOCK, side="right")) - 1)
            if end == len(self.rank_starts) - 1 and self.size - begin <= BLOCK:
                end += 1
            stop = int(self.rank_starts[end]) if end < len(self.rank_starts) else self.size
            yield Block(slice(first, end), slice(begin, stop))
            first = end

    def all(self) -> Places:
        """The positions of all elements, (size,)."""
        return np.arange(self.size, dtype=place_type(self.size))

    def flatten(self, adapter: Adapter) -> Floats:
        """(size,) values."""
        if not self.shapes:
            return np.zeros(0, np.float32)
        parts = [(adapter[name].T if _axis(name) else adapter[name]).reshape(-1) for name, _ in self.shapes]
        flat: Floats = torch.cat([t.detach().to("cpu", torch.float32) for t in parts]).numpy()
        return flat

    def unflatten(self, flat: npt.NDArray[Any]) -> Adapter:
        """The adapter whose values these are. Tensors of their own, of the same type."""
        adapter: Adapter = {}
        for (name, (a, b)), start, size in zip(self.shapes, self.starts, self.sizes, strict=True):
            piece = torch.from_numpy(flat[start : start + size])
            adapter[name] = (piece.reshape(b, a).T if _axis(name) else piece.reshape(a, b)).clone().contiguous()
        return adapter


def place_type(size: int) -> type[np.signedinteger[Any]]:
    """What positions among so many elements are written in."""
    return np.int32 if size < 2**31 else np.int64


def places_of(marks: Bools) -> Places:
    """The positions of what is marked, ascending."""
    found = np.empty(np.count_nonzero(marks), place_type(len(marks)))
    n = 0
    for begin in range(0, len(marks), BLOCK):
        here = np.flatnonzero(marks[begin : begin + BLOCK])
        np.add(here, begin, out=found[n : n + len(here)], casting="same_kind")
        n += len(here)
    return found


def _axis(name: str) -> int:
    """The dimension that counts ranks: 0 in A, 1 in B."""
    return int(name.endswith(".B"))
