"""Scores as whole numbers: what a sum of them says, and what none can say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from capfl.errors import TrainingError, WireError
from capfl.maths.masks import Whole
from capfl.types import Evaluation, HeldOut, Score, Tally
from capfl.wire.totals import Totals
from scored import completed, right

NAMES = ("accuracy", "perplexity", "token_accuracy")
RANKS = {"q": 8, "v": 4}
TOTALS = Totals(("base", "personal"), NAMES, RANKS, 5)


def said(score: Score, test: HeldOut, n_train: int = 10, rank: int = 4) -> Evaluation:
    return Evaluation(3, "a", n_train, test, {"base": score, "personal": score}, dict.fromkeys(RANKS, rank))


CHOICES = [said(right(k, 7, 0.5), HeldOut(7, 0.25, 0.5), 10 + k, 1 + k) for k in range(3)]
TEXTS = [said(completed(30, 70_000, 1e6 + 0.25), HeldOut(9)), said(completed(1, 2, math.pi), HeldOut(1))]


def summed(*evaluations: Evaluation, totals: Totals = TOTALS) -> Whole:
    first, *others = (totals.whole(own) for own in evaluations)
    for other in others:
        first = first.plus(other)
    return first


def test_a_sum_says_what_clients_with_two_kinds_of_task_say_together() -> None:
    total = TOTALS.read(summed(*CHOICES, *TEXTS), 5)
    choices, texts = total.tasks
    assert (choices.task, choices.clients, choices.n_train, choices.test) == ("choices", 3, 33, HeldOut(21, 0.25, 0.5))
    assert choices.scores["base"].metrics == {"accuracy": Tally(3, 21)}
    assert (texts.task, texts.clients, texts.n_train, texts.test) == ("completions", 2, 20, HeldOut(10))
    loss = texts.scores["personal"].metrics["perplexity"]
    assert loss.count == 70_002
    assert loss.sum == pytest.approx(1e6 + 0.25 + math.pi, abs=2**-16)
    assert texts.scores["personal"].metrics["token_accuracy"] == Tally(31, 70_002)
    assert total.ranks == {"q": (1 + 2 + 3 + 4 + 4) / 5, "v": (1 + 2 + 3 + 4 + 4) / 5}
    (alone,) = TOTALS.read(summed(*TEXTS), 2).tasks
    assert alone == texts


def test_as_many_clients_as_there_is_room_for() -> None:
    most = 2**15
    assert Totals((), NAMES, RANKS, most).width == 31
    with pytest.raises(WireError, match=f"scores of {2 * most} clients takes 32 bits"):
        Totals((), NAMES, RANKS, 2 * most)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 2.0**33])
def test_a_client_sends_no_score_that_is_none(loss: float) -> None:
    with pytest.raises(TrainingError, match="not finite, or too large"):
        TOTALS.whole(said(completed(1, 2, loss), HeldOut(1)))


def changed(place: int, digit: int) -> Whole:
    whole = summed(*CHOICES)
    values = whole.values.copy()
    values[place] = digit
    return Whole(values, whole.width, whole.numbers)


CLIENTS, TRAIN, CHANCE, RIGHT, RANK = 3 * 0 + 1, 3 * 1, 3 * 3 + 1, 3 * 10 + 1, 3 * 22 + 1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (changed(0, 3 * 2**16), "numbers that no scores sum to"),
        (changed(CLIENTS, 2), "one of other clients"),
        (changed(TRAIN, 1), "3 clients have .* training"),
        (changed(CHANCE, 22), "right by guessing"),
        (changed(RIGHT, 22), "a sum of accuracy is 22 of 21"),
        (changed(RANK, 40), "3 clients have 40 ranks of 'q', of 1 to 8 each"),
        (Whole(np.zeros(3, np.uint32), TOTALS.width, np.ones(1, np.uint32)), "other numbers than the scores"),
    ],
)
def test_a_sum_of_what_are_no_scores_is_refused(wrong: Whole, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        TOTALS.read(wrong, 3)
