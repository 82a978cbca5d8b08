"""Scoring: is the right option the likeliest? By its letter, or by its length-normalised text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from capfl.model.hidden import HiddenCache, Rows
from capfl.model.lora import AdaptedModel
from capfl.model.tokens import Example
from capfl.types import Adapter, Score


class Scorable:
    """The rows of one split, prepared for scoring once."""

    def __init__(self, key: str, examples: Sequence[Example]) -> None:
        self.examples = examples
        by_text = any(example.options for example in examples)
        if by_text:
            self.rows = Rows(f"{key}/options", [row for example in examples for row in example.options])
        else:
            self.rows = Rows(key, [example.train for example in examples])
        self.by_text = by_text


def score(model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int) -> Score:
    """Score one adapter on one split.

    Letters: the option whose letter has the highest next-token logit. Text: the option whose tokens have the
    highest mean log-probability. Completions: the share of answer tokens that are the likeliest next token.
    """
    examples = data.examples
    sums, found = _examined(model, cache, data, adapter, batch_size)
    if data.by_text:
        means = _means(data, sums)
        right = sum(int(own.argmax()) == example.right for own, example in zip(means, examples, strict=True))
        nll = [-float(torch.log_softmax(own, -1)[e.right]) for own, e in zip(means, examples, strict=True)]
        return Score(right, len(examples), sum(nll))
    if examples and examples[0].letters:
        right = sum(chosen == example.right for chosen, example in zip(found, examples, strict=True))
        return Score(right, len(examples), -sum(sums))
    return Score(sum(found), sum(len(row.targets) for row in data.rows.rows), -sum(sums))


def choose(model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int) -> list[int]:
    """The index of the option that an adapter chooses for each example; as ``score``, of examples that have options."""
    sums, found = _examined(model, cache, data, adapter, batch_size)
    return [int(own.argmax()) for own in _means(data, sums)] if data.by_text else found


@torch.no_grad()
def _examined(
    model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int
) -> tuple[list[float], list[int]]:
    """The log-probability of each row's answer; and the letter that is chosen, or the tokens that are the likeliest."""
    model.write(adapter)
    sums = [0.0] * len(data.rows)
    found = [0] * len(data.rows)
    for indices in data.rows.by_length(batch_size):
        batch = data.rows.batch(model, cache, indices)
        logits = model.logits(batch.ids, batch.positions, batch.hidden).float()
        if not data.by_text and data.examples[indices[0]].letters:
            for b, i in enumerate(indices):
                letters = logits[b, list(data.examples[i].letters)]
                found[i] = int(letters.argmax())
                sums[i] = float(torch.log_softmax(letters, -1)[data.examples[i].right])
            continue
        logp = -F.cross_entropy(logits, batch.targets, reduction="none")
        hits = (logits.argmax(-1) == batch.targets).long()
        for i, part, hit in zip(indices, logp.split(batch.counts), hits.split(batch.counts), strict=True):
            sums[i], found[i] = float(part.sum()), int(hit.sum())
    return sums, found


def _means(data: Scorable, sums: Sequence[float]) -> list[torch.Tensor]:
    """Each example's options: the mean log-probability of a token, (options,) float64."""
    means, at = [], 0
    for example in data.examples:
        rows = range(at, at + len(example.options))
        means.append(torch.tensor([sums[i] / len(data.rows.rows[i].targets) for i in rows], dtype=torch.float64))
        at += len(example.options)
    return means
