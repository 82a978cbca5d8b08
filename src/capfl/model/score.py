"""Scoring: is the right option the likeliest? By its letter, or by its length-normalised text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from capfl.model.hidden import Batch, HiddenCache, Rows
from capfl.model.lora import AdaptedModel
from capfl.model.parts import logits_in_parts
from capfl.model.tokens import Example
from capfl.types import Adapter, Score, Tally


class Scorable:
    """The rows of one split, prepared for scoring once."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self.by_letter = any(example.letters for example in examples)
        self.by_text = any(example.options for example in examples)
        rows = [example.options if self.by_text else (example.train,) for example in examples]
        self.rows = Rows([row for own in rows for row in own])


def score(model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int) -> Score:
    """Score one adapter on one split, by all metrics that cost nothing beside the loss (``metrics.VALIDATED``).

    Letters: the option whose letter has the highest next-token logit. Text: the option whose tokens have the
    highest mean log-probability. Completions: the share of answer tokens that are the likeliest next token, and the
    loss itself as a perplexity.
    """
    if data.by_letter or data.by_text:
        found = options(model, cache, data, adapter, batch_size)
        right = sum(int(own.argmax()) == example.right for own, example in zip(found, data.examples, strict=True))
        nll = [-float(torch.log_softmax(own, -1)[e.right]) for own, e in zip(found, data.examples, strict=True)]
        return Score(Tally(sum(nll), len(found)), {"accuracy": Tally(right, len(found))})
    sums, hits = _answers(model, cache, data, adapter, batch_size)
    tokens = sum(len(row.targets) for row in data.rows.rows)
    loss = Tally(-sum(sums), tokens)
    return Score(loss, {"perplexity": loss, "token_accuracy": Tally(sum(hits), tokens)})


def options(model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int) -> list[Tensor]:
    """What speaks for each option of each example, (options,): its letter's logit, or its mean log-probability."""
    if data.by_text:
        sums, _ = _answers(model, cache, data, adapter, batch_size)
        means = [total / len(row.targets) for total, row in zip(sums, data.rows.rows, strict=True)]
        return list(torch.tensor(means, dtype=torch.float64).split([len(e.options) for e in data.examples]))
    found = [torch.zeros(0)] * len(data.examples)
    for indices, _, parts in _passes(model, cache, data, adapter, batch_size):
        rows = (of_row for logits in parts for of_row in logits)  # a letter is one token
        for i, of_row in zip(indices, rows, strict=True):
            found[i] = of_row[list(data.examples[i].letters)].cpu()
    return found


def _answers(
    model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int
) -> tuple[list[float], list[int]]:
    """The log-probability of each row's answer, and how many of its tokens are the likeliest."""
    sums, hits = [0.0] * len(data.rows), [0] * len(data.rows)
    for indices, batch, parts in _passes(model, cache, data, adapter, batch_size):
        logp, likeliest, at = list[Tensor](), list[Tensor](), 0
        for logits in parts:
            targets = batch.targets[at : at + len(logits)]
            at += len(logits)
            logp.append(-F.cross_entropy(logits, targets, reduction="none"))
            likeliest.append((logits.argmax(-1) == targets).long())
        of_rows = torch.cat(logp).split(batch.counts), torch.cat(likeliest).split(batch.counts)
        for i, part, hit in zip(indices, *of_rows, strict=True):
            sums[i], hits[i] = float(part.sum()), int(hit.sum())
    return sums, hits


@torch.no_grad()
def _passes(
    model: AdaptedModel, cache: HiddenCache, data: Scorable, adapter: Adapter, batch_size: int
) -> Iterator[tuple[list[int], Batch, Iterator[Tensor]]]:
    """Row numbers, batch and logits (positions, vocabulary), in parts, of one pass after the other."""
    model.write(adapter)
    for indices in data.rows.by_length(batch_size):
        batch = data.rows.batch(model, cache, indices)
        yield indices, batch, logits_in_parts(model, batch)
