"""Scoring: is the right option the likeliest? By its letter, or by its length-normalised text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from capfl.model.hidden import Batch, HiddenCache, Rows
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Example
from capfl.types import Adapter, Score


class Scorable:
    """The rows of one split, prepared for scoring once."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self.by_letter = any(example.letters for example in examples)
        self.by_text = any(example.options for example in examples)
        rows = [example.options if self.by_text else (example.train,) for example in examples]
        self.rows = Rows([row for own in rows for row in own])


def score(model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int) -> Score:
    """Score one adapter on one split.

    Letters: the option whose letter has the highest next-token logit. Text: the option whose tokens have the
    highest mean log-probability. Completions: the share of answer tokens that are the likeliest next token.
    """
    if data.by_letter or data.by_text:
        found = options(model, cache, data, adapter, batch_size)
        right = sum(int(own.argmax()) == example.right for own, example in zip(found, data.examples, strict=True))
        nll = [-float(torch.log_softmax(own, -1)[e.right]) for own, e in zip(found, data.examples, strict=True)]
        return Score(right, len(found), sum(nll))
    sums, hits = _answers(model, cache, data, adapter, batch_size)
    return Score(sum(hits), sum(len(row.targets) for row in data.rows.rows), -sum(sums))


def options(model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int) -> list[Tensor]:
    """What speaks for each option of each example, (options,): its letter's logit, or its mean log-probability."""
    if data.by_text:
        sums, _ = _answers(model, cache, data, adapter, batch_size)
        means = [total / len(row.targets) for total, row in zip(sums, data.rows.rows, strict=True)]
        return list(torch.tensor(means, dtype=torch.float64).split([len(e.options) for e in data.examples]))
    found = [torch.zeros(0)] * len(data.examples)
    for indices, _, logits in _passes(model, cache, data, adapter, batch_size):
        for i, of_row in zip(indices, logits, strict=True):
            found[i] = of_row[list(data.examples[i].letters)].cpu()
    return found


def _answers(
    model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int
) -> tuple[list[float], list[int]]:
    """The log-probability of each row's answer, and how many of its tokens are the likeliest."""
    sums, hits = [0.0] * len(data.rows), [0] * len(data.rows)
    for indices, batch, logits in _passes(model, cache, data, adapter, batch_size):
        logp = -F.cross_entropy(logits, batch.targets, reduction="none")
        likeliest = (logits.argmax(-1) == batch.targets).long()
        for i, part, hit in zip(indices, logp.split(batch.counts), likeliest.split(batch.counts), strict=True):
            sums[i], hits[i] = float(part.sum()), int(hit.sum())
    return sums, hits


@torch.no_grad()
def _passes(
    model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """Row numbers, batch and logits (positions, vocabulary) of one pass after the other."""
    model.write(adapter)
    for indices in data.rows.by_length(batch_size):
        batch = data.rows.batch(model, cache, indices)
        yield indices, batch, model.logits(batch.ids, batch.positions, batch.hidden).float()
