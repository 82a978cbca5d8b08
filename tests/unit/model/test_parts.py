"""Logits in parts: the same numbers and gradients as all at once, and never more of them than was said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capfl.model import parts
from capfl.model.hidden import Batch, HiddenCache, Rows
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Row


def long_batch(model: AdaptedModel) -> Batch:
    draw = np.random.default_rng(0)
    rows = [Row(*(draw.integers(0, 250, n).astype(np.int32) for n in (size, size - 3))) for size in (20, 33, 12)]
    return Rows(rows).batch(model, HiddenCache(0), [0, 1, 2])


def gradient(model: AdaptedModel, batch: Batch) -> tuple[float, torch.Tensor]:
    for p in model.parameters.values():
        p.grad = None
    loss = parts.mean_loss(model, batch)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters.values() if p.grad is not None])


@pytest.mark.parametrize("layers", ["top:1", "all"])
def test_in_parts_as_at_once(adapt, wander, monkeypatch, layers):  # type: ignore[no-untyped-def]
    model = adapt(fresh=True, layers=layers)
    model.write(wander(model))
    batch = long_batch(model)
    (whole,) = parts.logits_in_parts(model, batch)
    loss, of_whole = gradient(model, batch)
    monkeypatch.setattr(parts, "at_once", lambda vocabulary: 7)
    widths, head = [], AdaptedModel.head

    def watched(model: AdaptedModel, states: torch.Tensor) -> torch.Tensor:
        widths.append(len(states))
        return head(model, states)

    monkeypatch.setattr(AdaptedModel, "head", watched)
    found = list(parts.logits_in_parts(model, batch))
    assert max(map(len, found)) == 7
    assert not any(part.requires_grad for part in found)
    torch.testing.assert_close(torch.cat(found), whole)
    in_parts, of_parts = gradient(model, batch)
    assert in_parts == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(of_parts, of_whole)
    assert len(widths) == 2 * len(found)  # scored, and trained on; nothing is computed again for the backward pass
    assert max(widths) == 7


def test_each_position_counts_as_much_as_it_is_asked_to(adapt, wander, monkeypatch):  # type: ignore[no-untyped-def]
    """Losses of single positions have their own gradients: those of a lot's clients, and of protected rows."""
    model = adapt(fresh=True)
    model.write(wander(model))
    batch = long_batch(model)
    weights, found = torch.linspace(0.5, 2, len(batch.positions)), []
    for most in (len(batch.positions), 7):
        monkeypatch.setattr(parts, "at_once", lambda vocabulary, most=most: most)
        losses = parts.token_losses(model, batch)
        for p in model.parameters.values():
            p.grad = None
        (losses * weights).sum().backward()
        grads = [p.grad.flatten() for p in model.parameters.values() if p.grad is not None]
        found.append((losses.detach(), torch.cat(grads)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_a_model_whose_head_is_no_function_of_states_is_not_cut(adapt, monkeypatch):  # type: ignore[no-untyped-def]
    model = adapt(fresh=True)
    assert model.has_head
    monkeypatch.setattr(AdaptedModel, "head", lambda model, states: torch.zeros(len(states), model.vocabulary))
    model.check_split()
    assert not model.has_head
    monkeypatch.setattr(parts, "at_once", lambda vocabulary: 1)
    assert len(list(parts.logits_in_parts(model, long_batch(model)))) == 1


def test_large_vocabularies_get_larger_parts() -> None:
    assert (parts.at_once(49_152), parts.at_once(262_144), parts.at_once(256)) == (128, 128, 16_384)
