"""Adapters at random, and clients that have been told: for tests of what servers make of updates."""

from __future__ import annotations

import torch

from capfl.methods import Method
from capfl.types import Adapter, ClientState, ServerState

SHAPES = {"q": (5, 4), "v": (3, 6)}  # (d_out, d_in)
RANK = 2


def drawn(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    made: Adapter = {}
    for module, (d_out, d_in) in SHAPES.items():
        made[f"{module}.A"] = torch.randn(RANK, d_in, generator=generator)
        made[f"{module}.B"] = torch.randn(d_out, RANK, generator=generator)
    return made


def told(method: Method, state: ServerState, client: str, start: Adapter) -> ClientState:
    """What a client remembers when it has been told its first message."""
    memory = method.init_client(client, start)
    return method.heed(method.brief(state, client) if method.brief else {}, memory) if method.heed else memory
