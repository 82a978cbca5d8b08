"""What each use of transformers' ``generate`` needs: prompts padded on the left, and the module set up for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from capfl.model.base import Base
from capfl.model.text import Ids


def left_padded(rows: Sequence[Ids | list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded on the left, and the mask of those that are no padding, (rows, longest) int64 each."""
    longest = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), longest), np.int64)
    for n, row in enumerate(rows):
        ids[n, longest - len(row) :], mask[n, longest - len(row) :] = row, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


@contextmanager
def lent(base: Base, config: GenerationConfig) -> Iterator[Any]:
    """The module, set up for ``generate`` for a while.

    Its generation config is ``config``: ``generate`` fills what an argument leaves open from the module's own, be it a
    repetition penalty. And the states that enter the head are contiguous: after a prompt they are the last position of
    each row, cut out of a longer tensor, for which torch would copy the head's weights once a row.
    """

    def contiguous(head: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].contiguous(), *args[1:])

    module = cast(Any, base.module)
    before, handle = module.generation_config, module.get_output_embeddings().register_forward_pre_hook(contiguous)
    module.generation_config = config
    try:
        yield module
    finally:
        module.generation_config = before
        handle.remove()
