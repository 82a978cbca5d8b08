"""Every row of a batch meets factors of its own, in one pass of the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from capfl.errors import ModelError
from capfl.model.lora import AdaptedModel, close
from capfl.types import Adapter

REMEDY = "set runtime.clients_per_pass = 1"
_WITHOUT = f"{REMEDY}, and leave out privacy.protects"


@torch.no_grad()
def check_rows(model: AdaptedModel) -> None:
    """See that rows can have adapters of their own, by two short texts with two adapters, together and alone.

    Experts, for one, see tokens of all rows in one heap.

    Raises:
        ModelError: they cannot.
    """
    ids, alone = model.probe(), list[Tensor]()
    drawn = torch.Generator().manual_seed(0)
    shapes = {name: p.shape for name, p in model.parameters.items()}
    adapters = [{name: 0.02 * torch.randn(shape, generator=drawn) for name, shape in shapes.items()} for _ in range(2)]
    positions = torch.arange(ids.shape[1], device=ids.device)
    for k, adapter in enumerate(adapters):
        model.write(adapter)
        alone.append(model.logits(ids[k : k + 1], positions))
    there = [{name: t.to(ids.device) for name, t in adapter.items()} for adapter in adapters]
    with own_adapters(model, there, [1, 1]):
        together = model.logits(ids, torch.arange(ids.numel(), device=ids.device))
    if not close(torch.cat(alone), together):
        raise ModelError(
            f"model.path: the output of {model.base.name} for a text depends on the other texts in the "
            f"batch; {_WITHOUT}"
        )


@contextmanager
def own_adapters(model: AdaptedModel, adapters: Sequence[Adapter], rows: Sequence[int]) -> Iterator[None]:
    """Within, the first rows[0] rows of a batch meet adapters[0], the next rows[1] meet adapters[1], and so on."""
    for name, half in model.halves.items():
        half.forward = partial(_product, [adapter[name] for adapter in adapters], rows)
    try:
        yield
    finally:
        for half in model.halves.values():
            del half.forward


def _product(factors: Sequence[Tensor], rows: Sequence[int], x: Tensor) -> Tensor:
    """x (rows, tokens, n) times each row's own factor (m, n), transposed; (rows, tokens, m).

    Clients of equally many rows are one matrix each in a batched product; otherwise rows are.
    """
    if x.ndim != 3 or len(x) != sum(rows):
        raise ModelError(
            f"an adapted module sees inputs of shape {tuple(x.shape)}, not {sum(rows)} rows of tokens; {_WITHOUT}"
        )
    if len(set(rows)) == 1:
        flat = x.reshape(len(factors), -1, x.shape[2])
        return torch.bmm(flat, torch.stack(list(factors)).mT).reshape(*x.shape[:2], -1)
    of_rows = torch.cat([factor.expand(n, *factor.shape) for factor, n in zip(factors, rows, strict=True)])
    return torch.bmm(x, of_rows.mT)
