"""The generated data set: many sentences, well posed, and not to be solved by counting words."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from capfl.data.codebook import codebooks
from capfl.data.helpdesk import QUEUES, generate
from capfl.data.phrases import FRAMES, INTENTS, PHRASES, PLAIN
from capfl.data.vocabulary import SITES, WORDS
from capfl.errors import ConfigError, DataError


@cache
def all_sites():
    return tuple(generate(12, 1000, 0.5, 0))


def site_items(site):
    return [item for item in all_sites() if item.fields["site"] == site]


def test_sizes_balance_and_variety():
    items = all_sites()
    assert len(items) == 12_000
    assert len({item.question for item in items}) >= 5_000
    for site in SITES:
        mine = site_items(site)
        assert len({item.question for item in mine}) == 1000
        assert set(Counter(item.fields["intent"] for item in mine).values()) == {83, 84}
    words = [len(item.question.split()) for item in items]
    assert 12 < np.mean(words) < 20
    assert max(words) <= 32


def test_items_follow_their_sites_code_book():
    books = codebooks(12, 12, 0.5, 0)
    for item in all_sites():
        site, intent = item.fields["site"], item.fields["intent"]
        assert item.answer == books[SITES.index(site), INTENTS.index(intent)]
        assert (item.choices, item.listed) == (QUEUES, False)
        assert item.fields["label"] == QUEUES[item.answer]
        assert item.fields["task"] == "helpdesk"


@pytest.mark.parametrize(("conflict", "shared"), [(0.0, 12), (0.5, 6), (1.0, 0)])
def test_conflict_is_what_sites_disagree_about(conflict, shared):
    book = [
        {item.fields["intent"]: item.answer for item in generate(2, 60, conflict, 3) if item.fields["site"] == site}
        for site in SITES[:2]
    ]
    assert sum(book[0][intent] == book[1][intent] for intent in INTENTS) == shared


def test_the_sentences_depend_on_seed_and_site_only():
    few, many = generate(2, 50, 0.0, 7), generate(5, 50, 1.0, 7)
    assert [item.question for item in few] == [item.question for item in many[:100]]
    assert generate(2, 50, 0.0, 7) == few
    assert [item.fields["intent"] for item in few[:50]] != [item.fields["intent"] for item in few[50:]]
    assert [item.question for item in generate(2, 50, 0.0, 8)] != [item.question for item in few]


def test_grammar_is_rich_enough():
    assert len(INTENTS) == len(set(INTENTS)) == 12
    assert sum(map(len, FRAMES.values())) >= 20
    for frames in FRAMES.values():
        first = sum(frame.index("{ask}") < frame.index("{other}") for frame in frames)
        assert 2 * first == len(frames)
    for forms in PHRASES.values():
        assert sum(len(phrases.split(" | ")) for phrases in forms.values()) >= 16
    assert len({tuple(words) for words in WORDS}) == 12


def test_about_one_request_in_seven_is_plain():
    patterns = [re.compile(re.escape(frame).replace(r"\{ask\}", ".+")) for fs in PLAIN.values() for frame in fs]
    phrases = re.compile("|".join(_patterns("bank").values()), re.I)
    plain = sum(
        any(p.fullmatch(item.question) for p in patterns) and len(phrases.findall(item.question)) == 1
        for item in site_items("bank")
    )
    assert 0.1 < plain / 1000 < 0.2


@cache
def _patterns(site):
    """For every intent, what its phrases look like at a site."""
    slots = {slot: "(?:" + "|".join(sorted({re.escape(w) for w in WORDS[site][slot]})) + ")" for slot in WORDS[site]}
    return {
        intent: "(?:" + "|".join(p.format(**slots) for form in forms.values() for p in form.split(" | ")) + ")"
        for intent, forms in PHRASES.items()
    }


def test_reading_tells_the_one_request():
    """Whoever knows the frames reads exactly one request out of every sentence: the task is well posed."""
    any_phrase = "(?:" + "|".join(_patterns("bank").values()) + ")"
    frames = [
        re.compile(re.escape(f).replace(r"\{ask\}", f"(?P<ask>{any_phrase})").replace(r"\{other\}", any_phrase), re.I)
        for forms in (FRAMES, PLAIN)
        for fs in forms.values()
        for f in fs
    ]
    kinds = {intent: re.compile(pattern, re.I) for intent, pattern in _patterns("bank").items()}
    for item in site_items("bank")[:150]:
        read = {
            intent
            for frame in frames
            if (match := frame.fullmatch(item.question))
            for intent, kind in kinds.items()
            if kind.fullmatch(match["ask"])
        }
        assert read == {item.fields["intent"]}, item.question


def _accuracy(items, n_train, seed):
    """Test accuracies of naive Bayes and of logistic regression on word counts."""
    order = np.random.default_rng(seed).permutation(len(items))
    train, test = order[:n_train], order[n_train:]
    words = [re.findall(r"[a-z']+", item.question.lower()) for item in items]
    vocabulary = {word: k for k, word in enumerate(sorted({word for k in train for word in words[k]}))}
    x = np.zeros((len(items), len(vocabulary)))
    for row, found in enumerate(words):
        for word in found:
            if word in vocabulary:
                x[row, vocabulary[word]] += 1
    y = np.array([item.answer for item in items])
    one_hot = np.eye(12)[y[train]]
    counts = one_hot.T @ x[train] + 0.3
    bayes = x[test] @ np.log(counts / counts.sum(axis=1, keepdims=True)).T
    weights, bias = np.zeros((len(vocabulary), 12)), np.zeros(12)
    for _ in range(150):
        scores = x[train] @ weights + bias
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        gradient = (p / p.sum(axis=1, keepdims=True) - one_hot) / n_train
        weights -= 2 * (x[train].T @ gradient + 0.003 * weights)
        bias -= 2 * gradient.sum(axis=0)
    logistic = x[test] @ weights + bias
    return [float((scores.argmax(axis=1) == y[test]).mean()) for scores in (bayes, logistic)]


@pytest.mark.parametrize("site", ["hospital", "theatre"])
def test_word_counts_do_not_solve_it(site):
    bayes, logistic = _accuracy(site_items(site), 300, 0)
    assert 0.3 < bayes < 0.75
    assert 0.4 < logistic < 0.75


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((13, 10, 0.5), ConfigError, "data.sites is 13; the helpdesk has 1 to 12"),
        ((2, 0, 0.5), ConfigError, "data.items is 0"),
        ((2, 12, 2.0), DataError, "conflict is 2.0"),
    ],
)
def test_errors(args, error, message):
    with pytest.raises(error, match=message):
        generate(*args, seed=0)


def test_running_out_of_sentences(monkeypatch):
    monkeypatch.setattr("capfl.data.helpdesk._sentence", lambda *args: "Always the same.")
    with pytest.raises(DataError, match=r"site hospital runs out of different sentences after 1; lower data\.items"):
        generate(1, 12, 0.5, 0)
