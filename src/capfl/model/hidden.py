"""Hidden states below the lowest adapted layer, and answers of the base: they never change, so each is computed once.

States are computed in blocks: the rows of one data split sorted by length, 32 at a time. What a row's state is
depends on its split alone, never on the batch that asks for it, the storage, or what was dropped, so results are
the same bits under every setting of ``runtime.cache`` and after every resume.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from capfl.config.runtime import DISK, MEMORY, OFF, RuntimeConfig
from capfl.errors import CheckpointError
from capfl.files import write_atomically
from capfl.model.lora import AdaptedModel
from capfl.model.text import Ids
from capfl.model.tokens import Row
from capfl.vault import Vault

BLOCK = 32  # rows computed at once; part of the definition of a state's bits
DIGEST = 32  # bytes before a block in its file: SHA-256, which processors have in hardware
PROBE = 16  # tokens of the passage by which a model is known
COMPUTED, REUSED, STORED = "blocks computed", "blocks reused", "bytes cached"


class HiddenCache:
    """A bounded store of blocks, in memory or as files in a folder.

    Blocks are named after what they are made of: the model and the tokens that went in. So several runs can use one
    folder, and a run that was killed finds its blocks again. A model is known by the bits that its lower layers make
    of a fixed passage: other weights, another lowest adapted layer, precision, device or number of threads give other
    bits, and are not mistaken for each other. A file has a digest, and one that was changed is computed again; against
    somebody who makes a new digest, too, there is the vault.

    What is stored stays until the end of the run: clients are visited in turn, so evicting the oldest would evict
    just what is needed next. Blocks that found no room live until the end of the visit.

    Args:
        limit_bytes: what the store may hold, with what is in the folder already.
        folder: of the files, made when the first is written; None: blocks are in memory.
        shared: do other runs use the folder? Otherwise it is removed at the end.
        vault: encrypts the files.
        counts: has ``blocks computed``, ``blocks reused`` and ``bytes cached``. Where several processes add to one
            counter (``workers``), each knows what the others have stored when its visit begins: together they may
            store more than the limit by what they store in one visit each.
    """

    def __init__(
        self,
        limit_bytes: int,
        folder: Path | None = None,
        shared: bool = False,
        vault: Vault | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        self.limit_bytes, self.folder = limit_bytes, folder
        self._shared, self._vault = shared, vault or Vault()
        self._counts = Counter[str]() if counts is None else counts
        for path in folder.glob("*") if folder else ():
            with suppress(FileNotFoundError):  # another run's file that has just got its name
                self._counts[STORED] += path.stat().st_size
        self._kept: dict[str, Tensor] = {}
        self._visit: dict[str, Tensor] = {}
        self._known: tuple[AdaptedModel, bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder and not self._shared:
            shutil.rmtree(self.folder, ignore_errors=True)

    def end_visit(self) -> None:
        """Forget the blocks that found no room."""
        self._visit.clear()

    def usage(self) -> dict[str, int]:
        """Blocks that were computed and that were found, and the bytes that are held."""
        return {"computed": self._counts[COMPUTED], "reused": self._counts[REUSED], "bytes": self._counts[STORED]}

    def block(self, model: AdaptedModel, rows: Sequence[Ids]) -> Tensor:
        """The states of some rows' tokens, (rows, longest, hidden) on the CPU; behind a row's end they mean nothing.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        return self._made_once(
            self._name(model, rows), lambda: model.lower(padded(rows).to(model.base.device)).cpu().contiguous()
        )

    def answers(
        self, model: AdaptedModel, prompts: Sequence[Ids], setting: str, write: Callable[[], list[list[int]]]
    ) -> list[list[int]]:
        """What the base writes after some prompts, token ids. Runs that share the folder share them, too.

        Args:
            model: with an adapter in it that changes nothing.
            setting: what else the answers depend on.
            write: gives the answers, if they are not kept yet.

        Raises:
            CheckpointError: as ``block``.
        """
        ids = model.probe()
        logits = model.logits(ids, torch.arange(ids.numel(), device=ids.device)).detach().cpu().contiguous()
        setting += hashlib.blake2b(logits.view(torch.uint8).numpy().tobytes(), digest_size=20).hexdigest()

        def made() -> Tensor:
            found = write()
            return torch.tensor([len(found), *map(len, found), *chain(*found)])

        kept: list[int] = self._made_once(self._name(model, prompts, setting.encode()), made).tolist()
        number, rest = kept[0], iter(kept[1 + kept[0] :])
        return [list(islice(rest, n)) for n in kept[1 : 1 + number]]

    def _made_once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        found = self._find(name)
        if found is not None:
            self._counts[REUSED] += 1
            return found
        self._counts[COMPUTED] += 1
        made = make()
        self._keep(name, made)
        return made

    def _find(self, name: str) -> Tensor | None:
        for store in (self._visit, self._kept):
            if name in store:
                return store[name]
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            blob = self._vault.unlock(path.read_bytes(), path)
            return load(blob[DIGEST:])["hidden"] if blob[:DIGEST] == _digest(name, blob[DIGEST:]) else None
        except (OSError, SafetensorError, CheckpointError):  # not there, or damaged: it is computed again
            return None

    def _keep(self, name: str, block: Tensor) -> None:
        data = save({"hidden": block}) if self.folder else b""
        data = _digest(name, data) + data if data else b""
        n_bytes = len(data) or block.numel() * block.element_size()
        if self._counts[STORED] + n_bytes > self.limit_bytes:
            self._visit[name] = block
            return
        if self.folder is None:
            self._kept[name] = block
        else:
            path = self.folder / name
            write_atomically(path, self._vault.lock(data, path))
        self._counts[STORED] += n_bytes

    def _name(self, model: AdaptedModel, rows: Sequence[Ids], setting: bytes = b"") -> str:
        content = hashlib.blake2b(self._fingerprint(model) + setting, digest_size=20)
        for ids in rows:
            content.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        return content.hexdigest()

    def _fingerprint(self, model: AdaptedModel) -> bytes:
        if self._known is None or self._known[0] is not model:
            passage = torch.arange(1, PROBE + 1, device=model.base.device).reshape(1, -1)
            hidden = model.lower(passage).cpu().contiguous()
            setting = f"{model.lowest} {hidden.dtype} {model.base.device.type} {torch.get_num_threads()} "
            digest = hashlib.blake2b(setting.encode() + hidden.view(torch.uint8).numpy().tobytes(), digest_size=20)
            self._known = model, digest.digest()
        return self._known[1]


def _digest(name: str, data: bytes) -> bytes:
    """The digest of a file and its name, by which a file that was changed or renamed is known."""
    digest = hashlib.sha256(name.encode())
    digest.update(data)
    return digest.digest()


def open_cache(config: RuntimeConfig, folder: Path, vault: Vault, counts: Counter[str] | None = None) -> HiddenCache:
    """The cache that a config asks for.

    Args:
        folder: of the files, unless ``cache`` names one that runs share.
        vault: encrypts them.
        counts: as of ``HiddenCache``.
    """
    limit = int(config.cache_gib * 2**30)
    if config.cache in (MEMORY, OFF):
        return HiddenCache(limit if config.cache == MEMORY else 0, counts=counts)
    shared = config.cache != DISK
    return HiddenCache(limit, Path(config.cache) if shared else folder, shared, vault, counts)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass needs.

    Attributes:
        ids: (rows, longest), padded on the right.
        positions: flat positions whose logits are asked for, (n,).
        targets: the tokens there, (n,).
        counts: how many of the positions belong to each row.
        hidden: what enters the lowest adapted layer, (rows, longest, hidden); None if that is the first layer.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    counts: list[int]
    hidden: Tensor | None


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, their rows below each other, padded to the longest row of all."""
    width = max(batch.ids.shape[1] for batch in batches)
    ids, positions, hidden, above = list[Tensor](), list[Tensor](), list[Tensor](), 0
    for batch in batches:
        rows, own = batch.ids.shape
        ids.append(F.pad(batch.ids, (0, width - own)))
        positions.append((above + batch.positions // own) * width + batch.positions % own)
        hidden += [] if batch.hidden is None else [F.pad(batch.hidden, (0, 0, 0, width - own))]
        above += rows
    return Batch(
        ids=torch.cat(ids),
        positions=torch.cat(positions),
        targets=torch.cat([batch.targets for batch in batches]),
        counts=[count for batch in batches for count in batch.counts],
        hidden=torch.cat(hidden) if hidden else None,
    )


class Rows:
    """The rows of one split of one client, ready to be batched for the model."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.lengths = [len(row.ids) for row in rows]
        self._order = sorted(range(len(rows)), key=lambda i: (self.lengths[i], i))
        self._place = {row: place for place, row in enumerate(self._order)}

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
        positions = [r.positions.astype(np.int64) + b * width for b, r in enumerate(rows)]
        device = model.base.device
        return Batch(
            ids=ids.to(device),
            positions=torch.from_numpy(np.concatenate(positions)).to(device),
            targets=torch.from_numpy(np.concatenate([r.targets for r in rows]).astype(np.int64)).to(device),
            counts=[len(r.targets) for r in rows],
            hidden=self._hidden(model, cache, indices) if model.lowest else None,
        )

    def _hidden(self, model: AdaptedModel, cache: HiddenCache, indices: Sequence[int]) -> Tensor:
        blocks: dict[int, Tensor] = {}
        states = []
        for i in indices:
            number, place = divmod(self._place[i], BLOCK)
            if number not in blocks:
                members = self._order[number * BLOCK : (number + 1) * BLOCK]
                blocks[number] = cache.block(model, [self.rows[j].ids for j in members])
            states.append(blocks[number][place, : self.lengths[i]])
        return pad_sequence(states, batch_first=True).to(model.base.device)


def padded(rows: Sequence[Ids]) -> Tensor:
    """(rows, longest) ids, padded on the right with token 0, which no position that matters ever sees."""
    return pad_sequence([torch.from_numpy(row.astype(np.int64)) for row in rows], batch_first=True)
