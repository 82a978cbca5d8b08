"""Clients and servers of CA-PFL on an adapter of four ranks."""

from __future__ import annotations

from dataclasses import replace

import torch

from capfl.maths.gamma import Gamma
from capfl.methods.capfl import Settings, capfl
from capfl.types import Trained
from fake import described

N = 4  # ranks: two modules of two


def adapter(columns: list[float], seed: int = 0):
    """Two modules of rank 2 whose B has columns of the given mean magnitudes."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for at, module in enumerate(("q", "v")):
        signs = torch.randint(0, 2, (5, 2), generator=generator) * 2.0 - 1
        made[f"{module}.A"] = torch.randn(2, 3, generator=generator)
        made[f"{module}.B"] = signs * torch.tensor(columns[2 * at : 2 * at + 2])
    return made


START = adapter([0.01] * N)


def felt(columns: list[float]) -> Trained:
    """Training that leaves such columns, and a loss that is as sensitive to their ranks."""
    return Trained(adapter(columns), (1.0,), torch.tensor(columns))


def told(method, server, client="a", memory=None):
    """A client's memory after a broadcast."""
    memory = memory or method.init_client(client, START)
    memory = replace(memory, known=server.adapter)
    memory = replace(memory, notes=memory.notes | described(client))
    return method.heed(method.brief(server, client), memory)


def fresh(**settings):
    method = capfl(Settings(**settings), seed=0)
    return method, method.init_server(START)


def posterior(memory):
    return Gamma(memory.notes["alpha"].double(), memory.notes["beta"].double())


def kappa(memory):
    return posterior(memory).mean()


def trained_by(method, server, columns, client="a", rounds=1):
    memory = None
    for _ in range(rounds):
        memory = told(method, server, client, memory)
        start = method.install(server.adapter, memory)
        _, memory = method.collect(start, felt(columns), memory)
    return memory
