"""Scores against the naive computation: every option alone, through the plain model."""

from __future__ import annotations

import math

import pytest
import torch

from capfl.data import render
from capfl.model import tiny
from capfl.model.hidden import HiddenCache
from capfl.model.score import Scorable, score
from capfl.model.tokens import encode
from capfl.types import Adapter, Item, Score

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


def plain(adapter: Adapter, alpha_over_r: float = 4.0):  # type: ignore[no-untyped-def]
    """The tiny model as transformers has it, with the adapter merged into its weights."""
    model = tiny.model()
    with torch.no_grad():
        for name in adapter:
            module, _, factor = name.rpartition(".")
            if factor == "A":
                model.get_submodule(module).weight += alpha_over_r * adapter[f"{module}.B"] @ adapter[name]
    return model


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
    return score(model, HiddenCache("memory", 1 << 20), Scorable("c", examples), adapter, batch_size)


@pytest.mark.parametrize("seed", range(2))
def test_letters_against_the_whole_softmax(adapt, wander, tokenizer, seed):
    model = adapt()
    adapter = wander(model, seed)
    naive = plain(adapter)
    correct, nll = 0, 0.0
    for item in CHOICES:
        prompt = render(item, "letter")
        logp = torch.tensor([log_probabilities(naive, prompt.text, a, tokenizer)[0][-1] for a in prompt.answers])
        correct += int(logp.argmax()) == item.answer
        nll -= float(torch.log_softmax(logp, 0)[item.answer])  # among the letters only
    got = scored(model, adapter, CHOICES, "letter", tokenizer)
    assert (got.correct, got.total) == (correct, 5)
    assert got.nll == pytest.approx(nll, rel=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_text_against_each_option_alone(adapt, wander, tokenizer, seed):
    model = adapt()
    adapter = wander(model, seed)
    naive = plain(adapter)
    correct, nll = 0, 0.0
    for item in CHOICES:
        prompt = render(item, "text")
        means = []
        for answer in prompt.answers:
            logp, _ = log_probabilities(naive, prompt.text, answer, tokenizer)
            means.append(sum(logp) / len(logp))
        correct += max(range(len(means)), key=means.__getitem__) == item.answer
        nll -= means[item.answer] - math.log(sum(map(math.exp, means)))
    got = scored(model, adapter, CHOICES, "text", tokenizer)
    assert (got.correct, got.total) == (correct, 5)
    assert got.nll == pytest.approx(nll, rel=1e-4)


def test_completions_count_tokens(adapt, wander, tokenizer):
    model = adapt()
    adapter = wander(model)
    naive = plain(adapter)
    logp, hits = [], []
    for item in COMPLETIONS:
        found = log_probabilities(naive, item.question, item.completion, tokenizer, end=True)
        logp += found[0]
        hits += found[1]
    got = scored(model, adapter, COMPLETIONS, "letter", tokenizer)
    assert (got.correct, got.total) == (sum(hits), len(" blue") + len(" four.") + len("b") + 3)
    assert got.nll == pytest.approx(-sum(logp), rel=1e-4)
    assert got.loss == pytest.approx(-sum(logp) / got.total, rel=1e-4)


def test_completions_that_are_learnt_are_counted_as_hits(adapt, tokenizer):
    """The likeliest tokens after a prompt, as its completion: all hits but the end."""
    model = adapt()
    ids = tokenizer("Once")["input_ids"]
    naive = tiny.model()
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(naive(torch.tensor([ids])).logits[0, -1, :256].argmax()))
    example = encode(render(Item("Once", completion="xyz"), "letter"), "letter", tokenizer, 99)
    example.train.ids[4:] = ids[4:7]
    example.train.targets[:3] = ids[4:7]
    got = score(model, HiddenCache("off", 0), Scorable("c", [example]), model.initial_adapter(0), 1)
    assert (got.correct, got.total) == (3, 4)


@pytest.mark.parametrize("scoring", ["letter", "text"])
def test_the_size_of_the_batches_does_not_matter(adapt, wander, tokenizer, scoring):
    model = adapt()
    adapter = wander(model)
    scores = [scored(model, adapter, CHOICES, scoring, tokenizer, batch_size=n) for n in (1, 3, 99)]
    assert len({s.correct for s in scores}) == 1
    assert [s.nll for s in scores] == pytest.approx([scores[0].nll] * 3, rel=1e-5)
    alone = [scored(model, adapter, [item], scoring, tokenizer) for item in CHOICES]
    assert sum(s.correct for s in alone) == scores[0].correct
    assert sum(s.nll for s in alone) == pytest.approx(scores[0].nll, rel=1e-5)


def test_options_of_one_length_are_ranked_by_their_likelihood_and_longer_ones_are_not_punished(adapt, tokenizer):
    model = adapt()
    items = [Item("q", ("aa", "aa" * 20), answer, listed=False) for answer in (0, 1)]
    got = [scored(model, model.initial_adapter(0), [item], "text", tokenizer) for item in items]
    assert got[0].correct + got[1].correct == 1
    naive = [log_probabilities(tiny.model(), "Text: q\nLabel:", " " + c, tokenizer)[0] for c in items[0].choices]
    assert sum(naive[0]) > sum(naive[1])  # by the sum the short one would win whatever it says
    means = [sum(n) / len(n) for n in naive]
    assert got[0].correct == (means[0] > means[1])


def test_scoring_writes_the_adapter_it_is_given_and_leaves_no_gradient(adapt, wander, tokenizer):
    model = adapt()
    first = scored(model, wander(model, 0), CHOICES, "letter", tokenizer)
    other = scored(model, wander(model, 1), CHOICES, "letter", tokenizer)
    assert first != other
    assert scored(model, wander(model, 0), CHOICES, "letter", tokenizer) == first
    assert all(p.grad is None for p in model.parameters.values())


def test_no_items_are_no_number(adapt, tokenizer):
    got = scored(adapt(), adapt().initial_adapter(0), [], "letter", tokenizer)
    assert got == Score(0, 0, 0.0)
    assert math.isnan(got.accuracy)
    assert math.isnan(got.loss)
    assert (Score(3, 4, 2.0).accuracy, Score(3, 4, 2.0).loss) == (0.75, 0.5)
