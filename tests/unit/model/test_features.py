"""Features of a client's prompts: of the frozen base, blind to answers, the same whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capfl.errors import DataError
from capfl.model.features import features as of
from capfl.model.tokens import Row

KINDS = ("hidden", "moments")
PROMPTS = [[5, 9, 200, 31], [7, 7], [100, 3, 18, 44, 2, 61]]


def row(prompt: list[int], answer: list[int]) -> Row:
    return Row(np.array([*prompt, *answer[:-1]], np.int32), np.array(answer, np.int32))


def features(*args, **more):  # type: ignore[no-untyped-def]
    return of(*args, **more)[0]


ROWS = [row(prompt, [11]) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", KINDS)
def test_they_do_not_see_the_answer(adapt, kind):
    model = adapt()
    base = model.initial_adapter(0)
    others = [row(prompt, [90 + n, 13, 8][: n + 1]) for n, prompt in enumerate(PROMPTS)]
    np.testing.assert_allclose(features(model, base, others, kind), features(model, base, ROWS, kind), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_they_see_the_prompt(adapt, kind):
    model = adapt()
    base = model.initial_adapter(0)
    changed = [row([*prompt[:-1], 77], [11]) for prompt in PROMPTS]
    assert np.abs(features(model, base, changed, kind) - features(model, base, ROWS, kind)).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_mean_over_items(adapt, kind):
    model = adapt()
    base = model.initial_adapter(0)
    each = [features(model, base, [one], kind) for one in ROWS]
    for batch_size in (1, 2, 32):
        np.testing.assert_allclose(features(model, base, ROWS, kind, batch_size), np.mean(each, 0), rtol=1e-4)


def test_hidden_is_the_middle_state_of_the_last_prompt_token_and_moments_its_mean_and_spread(adapt):
    model = adapt()
    base = model.initial_adapter(0)
    model.write(base)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        states = model.base.module(input_ids=ids, output_hidden_states=True).hidden_states
    last = [state[0, 3].double().numpy() for state in states]
    np.testing.assert_allclose(features(model, base, ROWS[:1], "hidden"), last[len(last) // 2], rtol=1e-6)
    moments = np.array([(h.mean(), h.std(ddof=1)) for h in last]).ravel()
    np.testing.assert_allclose(features(model, base, ROWS[:1], "moments"), moments, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_of_the_base_whatever_was_trained_before(adapt, wander, kind):
    model = adapt()
    base = model.initial_adapter(0)
    before = features(model, base, ROWS, kind)
    model.write(wander(model))
    assert (features(model, base, ROWS, kind) == before).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_deviation_is_that_of_the_items(adapt, kind):
    model = adapt()
    base = model.initial_adapter(0)
    each = [features(model, base, [one], kind) for one in ROWS]
    np.testing.assert_allclose(of(model, base, ROWS, kind, 2)[1], np.std(each, 0), rtol=1e-3, atol=1e-6)
    assert (of(model, base, ROWS[:1], kind)[1] == 0).all()


def test_no_items(adapt):
    model = adapt()
    with pytest.raises(DataError, match="without items"):
        features(model, model.initial_adapter(0), [], "hidden")
