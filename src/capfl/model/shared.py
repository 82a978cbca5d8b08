"""Hidden states that several runs share in a folder, such as those of a comparison: each is computed once for all."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from capfl.errors import CheckpointError
from capfl.files import write_atomically
from capfl.model.lora import AdaptedModel

PROBE = 16  # tokens of the passage by which a model is known


class SharedBlocks:
    """Blocks (tokens, hidden) in files named after what they are made of: the model, and the ids that went in.

    A model is known by the bits that its lower layers make of a fixed passage: other weights, another lowest adapted
    layer, precision, device or number of threads give other bits, and are not mistaken for each other.

    Args:
        folder: made where it is not there.
        limit_bytes: what the folder may hold; what finds no room is computed by each run.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._known: tuple[AdaptedModel, bytes] | None = None

    def get(self, model: AdaptedModel, ids: Tensor) -> Tensor | None:
        """What the model makes of ids (rows, tokens), without the padding, if it is there.

        Raises:
            CheckpointError: its file is damaged.
        """
        path = self._path(model, ids)
        try:
            return load_file(path)["hidden"] if path.exists() else None
        except (SafetensorError, KeyError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; remove it, and it is made again") from error

    def put(self, model: AdaptedModel, ids: Tensor, block: Tensor) -> None:
        """Keep a block, if there is room.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        data = save({"hidden": block.contiguous()})
        if self._held_bytes() + len(data) <= self.limit_bytes:
            write_atomically(self._path(model, ids), data)

    def _held_bytes(self) -> int:
        held = 0
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):  # another run's file that has just got its name
                held += path.stat().st_size
        return held

    def _path(self, model: AdaptedModel, ids: Tensor) -> Path:
        content = self._fingerprint(model) + repr(tuple(ids.shape)).encode() + ids.cpu().contiguous().numpy().tobytes()
        return self.folder / hashlib.blake2b(content, digest_size=20).hexdigest()

    def _fingerprint(self, model: AdaptedModel) -> bytes:
        if self._known is None or self._known[0] is not model:
            passage = torch.arange(1, PROBE + 1, device=model.base.device).reshape(1, -1)
            hidden = model.lower(passage).cpu().contiguous()
            setting = f"{model.lowest} {hidden.dtype} {model.base.device.type} {torch.get_num_threads()} "
            self._known = model, setting.encode() + hidden.view(torch.uint8).numpy().tobytes()
        return self._known[1]
