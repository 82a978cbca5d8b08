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


@torch.no_grad()
def score(model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int) -> Score:
    """Score one adapter on one split.

    Letters: the option whose letter has the highest next-token logit. Text: the option whose tokens have the
    highest mean log-probability. Completions: the share of answer tokens that are the likeliest next token.
    """
    model.write(adapter)
    sums = [0.0] * len(data.rows)  # log-probability of each row's answer
    right = [0] * len(data.rows)
    n_tokens = [len(row.targets) for row in data.rows.rows]
    for indices in data.rows.by_length(batch_size):
        batch = data.rows.batch(model, cache, indices)
        logits = model.logits(batch.ids, batch.positions, batch.hidden).float()
        if not data.by_text and data.examples[indices[0]].letters:
            for b, i in enumerate(indices):
                letters = logits[b, list(data.examples[i].letters)]
                right[i] = int(int(letters.argmax()) == data.examples[i].right)
                sums[i] = float(torch.log_softmax(letters, -1)[data.examples[i].right])
            continue
        logp = -F.cross_entropy(logits, batch.targets, reduction="none")
        hits = (logits.argmax(-1) == batch.targets).long()
        for i, part, hit in zip(indices, logp.split(batch.counts), hits.split(batch.counts), strict=True):
            sums[i], right[i] = float(part.sum()), int(hit.sum())
    if data.by_text:
        return _by_text(data.examples, sums, n_tokens)
    letters_used = bool(data.examples) and bool(data.examples[0].letters)
    total = len(sums) if letters_used else sum(n_tokens)
    return Score(sum(right), total, -sum(sums))


def _by_text(examples: Sequence[Example], sums: Sequence[float], n_tokens: Sequence[int]) -> Score:
    at, correct, nll = 0, 0, 0.0
    for example in examples:
        n = len(example.options)
        means = torch.tensor([sums[i] / n_tokens[i] for i in range(at, at + n)], dtype=torch.float64)
        correct += int(int(means.argmax()) == example.right)
        nll -= float(torch.log_softmax(means, -1)[example.right])
        at += n
    return Score(correct, len(examples), nll)
