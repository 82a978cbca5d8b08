"""The only place that seeds: every random stream is derived from (seed, purpose, round, client)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Draw = Callable[[int], bytes]
"""So many random bytes, others each time: of a stream, or the operating system's, ``os.urandom``."""


def derive(seed: int, purpose: str, *keys: int | str) -> int:
    """A 64-bit seed for one purpose. Equal arguments give equal seeds, on every machine."""
    text = "\x1f".join([str(seed), purpose, *map(repr, keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, purpose: str, *keys: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose, independent of all others."""
    return np.random.default_rng(derive(seed, purpose, *keys))


@contextmanager
def torch_stream(seed: int, purpose: str, *keys: int | str) -> Iterator[torch.Generator]:
    """Seed torch's global generator within the block (dropout reads no other) and restore it after."""
    import torch

    with torch.random.fork_rng():
        yield torch.manual_seed(derive(seed, purpose, *keys) % 2**63)
