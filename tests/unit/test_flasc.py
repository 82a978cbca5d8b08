"""FLASC, by hand."""

from __future__ import annotations

from dataclasses import replace

import torch

from capfl.config.schema import MethodConfig
from capfl.methods import build
from capfl.types import Update
from updates import RANK, drawn


def test_flasc_starts_from_the_largest_values_of_all() -> None:
    method = build(MethodConfig(name="flasc", start_density=0.4))
    start = {"m.A": torch.tensor([[1.0, -4.0, 2.0]]), "m.B": torch.tensor([[3.0], [0.5]])}
    masked = method.broadcast(method.init_server(start))
    assert (masked["m.A"].tolist(), masked["m.B"].tolist()) == ([[0.0, -4.0, 0.0]], [[3.0], [0.0]])


def test_flasc_steps_like_adamw_on_minus_the_mean_change() -> None:
    method, start = build(MethodConfig(name="flasc", server_learning_rate=0.01)), drawn(0)
    state = method.init_server(start)
    live = {key: torch.nn.Parameter(t.clone()) for key, t in start.items()}
    optimiser = torch.optim.AdamW(live.values(), lr=0.01, weight_decay=0.0)
    for round in range(3):
        changes = [(drawn(10 * round + k), k + 1) for k in range(2)]
        updates = [Update(round + 1, "ab"[k], change, n, 1, 1.0) for k, (change, n) in enumerate(changes)]
        state = replace(method.aggregate(state, updates), round=round + 1)
        for key, p in live.items():
            p.grad = -sum(n * change[key] for change, n in changes) / 3
        optimiser.step()
        for key, p in live.items():
            torch.testing.assert_close(state.adapter[key], p.detach(), rtol=1e-4, atol=1e-6)
    assert state.notes["m/q.A"].shape == state.notes["v/q.A"].shape == (RANK * 4,)
