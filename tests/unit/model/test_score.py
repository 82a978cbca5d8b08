"""Scores against the naive computation: every option alone, through the plain model."""

from __future__ import annotations

import math

import pytest
import torch

from capfl.data import render
from capfl.metrics import metric
from capfl.model import tiny
from capfl.model.hidden import HiddenCache
from capfl.model.score import Scorable, score
from capfl.model.tokens import encode
from capfl.types import Adapter, Item, Score, Tally

CHOICES = [
    Item("2 + 2?", ("3", "4", "5"), 1),
    Item("A longer question about colours?", ("red", "a dark kind of blue"), 0),
    Item("Yes?", ("yes", "no", "maybe", "who knows"), 3),
    Item("spam spam", ("ham", "spam"), 1, listed=False),
    Item("Which one is it?", ("this", "that"), 1),
]
COMPLETIONS = [
    Item("The sky is", completion=" blue"),
    Item("Two and two make", completion=" four."),
    Item("a", completion="b"),
]


@torch.no_grad()
def log_probabilities(model, prompt: str, answer: str, tokenizer, end: bool = False):  # type: ignore[no-untyped-def]
    """(log-probability, is it the likeliest?) of every token of the answer."""
    head = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + answer)["input_ids"] + ([tokenizer.eos_token_id] if end else [])
    logp = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    at = range(len(head), len(whole))
    return [float(logp[i - 1, whole[i]]) for i in at], [int(logp[i - 1].argmax()) == whole[i] for i in at]


def scored(model, adapter: Adapter, items, scoring: str, tokenizer, batch_size: int = 2) -> Score:  # type: ignore[no-untyped-def]
    examples = [encode(render(item, scoring), scoring, tokenizer, 200) for item in items]
    return score(model, HiddenCache(1 << 20), Scorable(examples), adapter, batch_size)


@pytest.mark.parametrize("scoring", ["letter", "text"])
def test_options_against_each_of_them_alone(adapt, wander, merged, tokenizer, scoring):
    """By the letter's probability, or by the mean of the option's tokens; whatever the size of the batches."""
    model, got = adapt(), []
    for seed in range(2):
        adapter = wander(model, seed)
        naive, correct, nll = merged(adapter), 0, 0.0
        for item in CHOICES:
            prompt = render(item, scoring)
            found = [log_probabilities(naive, prompt.text, answer, tokenizer)[0] for answer in prompt.answers]
            options = torch.tensor([logp[-1] if scoring == "letter" else sum(logp) / len(logp) for logp in found])
            correct += int(options.argmax()) == item.answer
            nll -= float(torch.log_softmax(options, 0)[item.answer])
        for batch_size in (1, 3, 99):
            got.append(scored(model, adapter, CHOICES, scoring, tokenizer, batch_size))
            assert got[-1].metrics == {"accuracy": Tally(correct, 5)}
            assert (got[-1].loss.sum, got[-1].loss.count) == (pytest.approx(nll, rel=1e-4), 5)
    assert got[0].loss != got[-1].loss  # each adapter has its own
    assert all(p.grad is None for p in model.parameters.values())


def test_completions_count_tokens(adapt, wander, merged, tokenizer):
    model = adapt()
    adapter = wander(model)
    naive = merged(adapter)
    logp, hits = [], []
    for item in COMPLETIONS:
        found = log_probabilities(naive, item.question, item.completion, tokenizer, end=True)
        logp += found[0]
        hits += found[1]
    got = scored(model, adapter, COMPLETIONS, "letter", tokenizer)
    tokens = len(" blue") + len(" four.") + len("b") + 3
    assert got.metrics == {"perplexity": got.loss, "token_accuracy": Tally(sum(hits), tokens)}
    assert (got.loss.sum, got.loss.count) == (pytest.approx(-sum(logp), rel=1e-4), tokens)


def test_completions_that_are_learnt_are_counted_as_hits(adapt, tokenizer):
    """The likeliest tokens after a prompt, as its completion: all hits but the end."""
    ids = tokenizer("Once")["input_ids"]
    naive = tiny.model()
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(naive(torch.tensor([ids])).logits[0, -1, :256].argmax()))
    example = encode(render(Item("Once", completion="xyz"), "letter"), "letter", tokenizer, 99)
    example.train.ids[4:] = ids[4:7]
    example.train.targets[:3] = ids[4:7]
    got = score(adapt(), HiddenCache(0), Scorable([example]), adapt().initial_adapter(0), 1)
    assert got.metrics["token_accuracy"] == Tally(3, 4)


def test_no_items_are_no_number(adapt, tokenizer):
    got = scored(adapt(), adapt().initial_adapter(0), [], "letter", tokenizer)
    assert got.metrics["token_accuracy"] == got.loss == Tally(0, 0)
    assert all(math.isnan(metric(name).value(tally)) for name, tally in got.metrics.items())
