"""Hidden states below the lowest adapted layer: they never change, so each is computed once.

States are computed in blocks: the rows of one data split sorted by length, 32 at a time. What a row's state is
depends on its split alone, never on the batch that asks for it, the storage, or what was dropped, so results are
the same bits under every setting of ``runtime.cache`` and after every resume.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Literal, Self

import numpy as np
import torch
from torch import Tensor

from capfl.errors import CheckpointError
from capfl.model.lora import AdaptedModel
from capfl.model.shared import SharedBlocks
from capfl.model.tokens import Ids, Row

BLOCK = 32  # rows computed at once; part of the definition of a state's bits

Key = tuple[str, int]


class HiddenCache:
    """A bounded store of blocks, in memory or in one unlinked file.

    What is stored stays until the end of the run: clients are visited in turn, so evicting the oldest would evict
    just what is needed next. Blocks that found no room live until the end of the visit.

    Args:
        folder: where the file lies.
        shared: where blocks are looked up that the store lacks, before they are computed.
    """

    def __init__(
        self,
        mode: Literal["memory", "disk", "off"],
        limit_bytes: int,
        folder: Path | None = None,
        shared: SharedBlocks | None = None,
    ) -> None:
        self.shared = shared
        self.mode = mode
        self.limit_bytes = limit_bytes if mode != "off" else 0
        self.used_bytes = 0
        self.computed = 0  # blocks computed
        self.reused = 0  # blocks found
        self._kept: dict[Key, Tensor] = {}
        self._places: dict[Key, tuple[int, tuple[int, ...], torch.dtype]] = {}
        self._visit: dict[Key, Tensor] = {}
        self._file: BinaryIO | None = None
        if mode == "disk":
            self._file = tempfile.TemporaryFile(dir=folder, prefix="hidden-")  # noqa: SIM115 (lives as long as we do)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def end_visit(self) -> None:
        """Forget the blocks that found no room."""
        self._visit.clear()

    def get(self, key: Key) -> Tensor | None:
        found = self._visit.get(key)
        if found is None:
            found = self._kept.get(key)
        if found is None and key in self._places:
            found = self._read(key)
        if found is not None:
            self.reused += 1
        return found

    def put(self, key: Key, block: Tensor, computed: bool = True) -> None:
        """Keep one block (tokens, hidden) on the CPU, if there is room. Was it computed, or found where runs share?"""
        self.computed += computed
        block = block.to("cpu").contiguous()
        n_bytes = block.numel() * block.element_size()
        if self.used_bytes + n_bytes > self.limit_bytes:
            self._visit[key] = block
            return
        if self._file is None:
            self._kept[key] = block
        else:
            self._places[key] = (self.used_bytes, tuple(block.shape), block.dtype)
            try:
                self._file.seek(self.used_bytes)
                self._file.write(block.view(torch.uint8).numpy().data)
                self._file.flush()
            except OSError as error:
                raise CheckpointError(
                    f"cannot keep hidden states on disk: {error.strerror}; free some space, or use "
                    "runtime.cache = memory or off, then go on with: capfl run --resume RUN_FOLDER"
                ) from error
        self.used_bytes += n_bytes

    def _read(self, key: Key) -> Tensor:
        """A plain read, not a memory map: mapped pages would count as the process's memory."""
        assert self._file is not None
        offset, shape, dtype = self._places[key]
        raw = bytearray(int(np.prod(shape)) * dtype.itemsize)
        view = memoryview(raw)
        while view:
            n = os.preadv(self._file.fileno(), [view], offset)
            if n == 0:
                raise OSError(f"the cache file ends before block {key}")
            view, offset = view[n:], offset + n
        return torch.frombuffer(raw, dtype=dtype).reshape(shape)


class Rows:
    """The rows of one split of one client, ready to be batched for the model.

    Args:
        key: names the split in the cache; unique within a run.
    """

    def __init__(self, key: str, rows: Sequence[Row]) -> None:
        self.key = key
        self.rows = rows
        self.lengths = [len(row.ids) for row in rows]
        self._order = sorted(range(len(rows)), key=lambda i: (self.lengths[i], i))
        self._place: dict[int, tuple[int, int]] = {}  # row -> (block, first token within it)
        for start in range(0, len(rows), BLOCK):
            at = 0
            for i in self._order[start : start + BLOCK]:
                self._place[i] = (start // BLOCK, at)
                at += self.lengths[i]

    def __len__(self) -> int:
        return len(self.rows)

    def by_length(self, batch_size: int) -> list[list[int]]:
        """All rows in batches of like length, for scoring."""
        return [self._order[i : i + batch_size] for i in range(0, len(self.rows), batch_size)]

    def batch(self, model: AdaptedModel, cache: HiddenCache, indices: Sequence[int]) -> Batch:
        """Inputs, positions and targets of some rows."""
        rows = [self.rows[i] for i in indices]
        ids = padded([row.ids for row in rows])
        width = ids.shape[1]
        positions = [np.arange(len(r.ids) - len(r.targets), len(r.ids)) + b * width for b, r in enumerate(rows)]
        device = model.base.device
        return Batch(
            ids=ids.to(device),
            positions=torch.from_numpy(np.concatenate(positions)).to(device),
            targets=torch.from_numpy(np.concatenate([r.targets for r in rows]).astype(np.int64)).to(device),
            counts=[len(r.targets) for r in rows],
            hidden=self._hidden(model, cache, indices, width) if model.lowest else None,
        )

    def _hidden(self, model: AdaptedModel, cache: HiddenCache, indices: Sequence[int], width: int) -> Tensor:
        blocks: dict[int, Tensor] = {}
        parts = []
        for i in indices:
            number, at = self._place[i]
            if number not in blocks:
                blocks[number] = self._block(model, cache, number)
            parts.append(blocks[number][at : at + self.lengths[i]])
        hidden = torch.zeros(len(parts), width, parts[0].shape[1], dtype=parts[0].dtype)
        for b, part in enumerate(parts):
            hidden[b, : len(part)] = part
        return hidden.to(model.base.device)

    def _block(self, model: AdaptedModel, cache: HiddenCache, number: int) -> Tensor:
        key = (self.key, number)
        found = cache.get(key)
        if found is None:
            members = self._order[number * BLOCK : (number + 1) * BLOCK]
            ids = padded([self.rows[i].ids for i in members])
            found = cache.shared.get(model, ids) if cache.shared else None
            computed = found is None
            if found is None:
                hidden = model.lower(ids.to(model.base.device))
                found = torch.cat([hidden[b, : self.lengths[i]] for b, i in enumerate(members)]).to("cpu")
                if cache.shared:
                    cache.shared.put(model, ids, found)
            cache.put(key, found, computed)
        return found


class Batch:
    """What one forward pass needs. ``counts`` says how many of the positions belong to each row."""

    __slots__ = ("counts", "hidden", "ids", "positions", "targets")

    def __init__(
        self, ids: Tensor, positions: Tensor, targets: Tensor, counts: list[int], hidden: Tensor | None
    ) -> None:
        self.ids, self.positions, self.targets = ids, positions, targets
        self.counts, self.hidden = counts, hidden


def padded(rows: Sequence[Ids]) -> Tensor:
    """(batch, longest) ids, padded on the right with token 0, which no position that matters ever sees."""
    ids = torch.zeros(len(rows), max(len(r) for r in rows), dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return ids
