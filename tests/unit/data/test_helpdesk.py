"""The generated data set: many sentences, well posed, and not to be solved by counting words."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from capfl.data.codebooks import codebooks
from capfl.data.helpdesk import FRAMES, INTENTS, PHRASES, PLAIN, QUEUES, SITES, WORDS, Request, generate
from capfl.errors import DataError


@cache
def site_items():
    """A thousand requests to each of two sites."""
    items = generate(2, 1000, 0.5, 0)
    return {site: [item for item in items if item.fields["site"] == site] for site in SITES[:2]}


def test_requests_are_different_and_follow_their_site_s_code_book():
    for number, (site, items) in enumerate(site_items().items()):
        book = codebooks(2, 12, 0.5, 0)[number]
        assert len({item.question for item in items}) == len(items) == 1000
        assert set(Counter(item.fields["intent"] for item in items).values()) == {83, 84}
        assert 12 < np.mean([len(item.question.split()) for item in items]) < 20
        for item in items:
            assert item.answer == book[INTENTS.index(item.fields["intent"])]
            assert (item.choices, item.listed) == (QUEUES, False)
            assert item.fields | {"label": QUEUES[item.answer], "task": "helpdesk", "site": site} == item.fields
    assert len(generate(12, 12, 1.0, 0)) == 12 * 12


@pytest.mark.parametrize(("conflict", "shared"), [(0.0, 12), (0.5, 6), (1.0, 0)])
def test_conflict_is_what_sites_disagree_about(conflict, shared):
    items = generate(2, 60, conflict, 3)
    book = [{i.fields["intent"]: i.answer for i in items if i.fields["site"] == site} for site in SITES[:2]]
    assert sum(book[0][intent] == book[1][intent] for intent in INTENTS) == shared


def test_the_sentences_depend_on_seed_and_site_only():
    few, many = generate(2, 50, 0.0, 7), generate(5, 50, 1.0, 7)
    assert [item.question for item in few] == [item.question for item in many[:100]]
    assert [item.fields["intent"] for item in few[:50]] != [item.fields["intent"] for item in few[50:]]
    assert [item.question for item in generate(2, 50, 0.0, 8)] != [item.question for item in few]


def test_the_topic_that_is_asked_for_comes_first_as_often_as_last():
    for frames in FRAMES.values():
        assert 2 * sum(frame.index("{ask}") < frame.index("{other}") for frame in frames) == len(frames)


def test_whoever_knows_the_frames_reads_exactly_one_request_out_of_every_sentence():
    slots = {slot: "(?:" + "|".join(map(re.escape, words)) + ")" for slot, words in WORDS["bank"].items()}
    kinds = {
        intent: re.compile("|".join(phrase.format(**slots) for form in forms.values() for phrase in form), re.I)
        for intent, forms in PHRASES.items()
    }
    frames = [
        re.compile(re.escape(frame).replace(r"\{ask\}", "(?P<ask>.+)").replace(r"\{other\}", "(?P<other>.+)"), re.I)
        for forms in (FRAMES, PLAIN)
        for of_form in forms.values()
        for frame in of_form
    ]
    for item in site_items()["bank"][:60]:
        readings = [match.groupdict() for frame in frames if (match := frame.fullmatch(item.question))]
        asked = {
            intent
            for reading in readings
            if all(any(kind.fullmatch(topic) for kind in kinds.values()) for topic in reading.values())
            for intent, kind in kinds.items()
            if kind.fullmatch(reading["ask"])
        }
        assert asked == {item.fields["intent"]}, item.question


def test_word_counts_do_not_solve_it():
    """Test accuracy of logistic regression on word counts, 300 training items."""
    items = site_items()["bank"]
    order = np.random.default_rng(0).permutation(len(items))
    train, test = order[:300], order[300:]
    words = [Counter(re.findall(r"[a-z']+", item.question.lower())) for item in items]
    vocabulary = sorted({word for k in train for word in words[k]})
    x = np.array([[found[word] for word in vocabulary] for found in words], float)
    y = np.array([item.answer for item in items])
    weights, bias = np.zeros((len(vocabulary), 12)), np.zeros(12)
    for _ in range(150):
        scores = x[train] @ weights + bias
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        gradient = (p / p.sum(axis=1, keepdims=True) - np.eye(12)[y[train]]) / len(train)
        weights -= 2 * (x[train].T @ gradient + 0.003 * weights)
        bias -= 2 * gradient.sum(axis=0)
    assert 0.4 < ((x[test] @ weights + bias).argmax(axis=1) == y[test]).mean() < 0.75


def test_more_requests_than_there_are_sentences(monkeypatch):
    same = Request("Always the same.", 0, ())
    monkeypatch.setattr("capfl.data.helpdesk._request", lambda *args: same)
    with pytest.raises(DataError, match=r"site hospital runs out of different sentences after 1; lower data\.items"):
        generate(1, 12, 0.5, 0)
