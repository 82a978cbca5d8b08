"""What a client says of its data: of the frozen base, the same whatever the batch, and blind to answers in one part."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from capfl.errors import DataError
from capfl.model.features import PATTERNS, bound, describe
from capfl.model.tokens import Row

D = 32
PROMPTS = [[5, 9, 200, 31], [7, 7], [100, 3, 18, 44, 2, 61]]


def row(prompt: list[int], answer: list[int]) -> Row:
    return Row(np.array([*prompt, *answer[:-1]], np.int32), np.array(answer, np.int32))


ROWS = [row(prompt, [11 + n % 2]) for n, prompt in enumerate(PROMPTS)]


def test_the_prompts_part_does_not_see_the_answer_and_the_bound_part_does(adapt):
    model = adapt()
    base = model.initial_adapter(0)
    others = [row(prompt, [90 + n, 13, 8][: n + 1]) for n, prompt in enumerate(PROMPTS)]
    one, other = describe(model, base, ROWS), describe(model, base, others)
    np.testing.assert_allclose(one.features[:D], other.features[:D], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.deviation, other.deviation, rtol=1e-4, atol=1e-6)
    assert np.abs(one.features[D:] - other.features[D:]).max() > 1e-3


def test_it_is_the_same_whatever_the_batch(adapt, wander):
    model = adapt()
    base = model.initial_adapter(0)
    whole = describe(model, base, ROWS)
    model.write(wander(model))  # whatever was trained before
    assert whole.features.shape == ((1 + PATTERNS) * D,)
    for batch_size in (1, 2):
        for a, b in zip(astuple(describe(model, base, ROWS, batch_size)), astuple(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_prompt_is_the_mean_over_its_tokens_but_the_first_at_a_quarter_of_the_depth(adapt):
    model = adapt()
    base = model.initial_adapter(0)
    model.write(base)
    expected = []
    for prompt in PROMPTS:
        with torch.no_grad():
            states = model.base.module(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
        expected.append(states[len(model.layers) // 4][0, 1:].double().mean(0).numpy())
    long = [row(prompt, [11, 12, 13]) for prompt in PROMPTS]  # the rest of the answer is not looked at
    for rows in (ROWS, long):
        found = describe(model, base, rows)
        np.testing.assert_allclose(found.features[:D], np.mean(expected, 0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.deviation, np.std(expected, 0), rtol=1e-4, atol=1e-6)
    order = sorted(range(3), key=lambda i: len(PROMPTS[i]))
    again = bound(np.stack([expected[i] for i in order]), [(11 + i % 2,) for i in order]).mean(0)
    np.testing.assert_allclose(describe(model, base, ROWS).features[D:], again, rtol=1e-3, atol=1e-6)
    first = describe(model, base, [row([5], [11])])
    assert np.isfinite(first.features).all()
    assert np.abs(first.features[:D]).max() > 0


def test_bound_states_agree_where_answers_do():
    generator = np.random.default_rng(0)
    states = generator.normal(size=(2, 4000))
    alike, other = bound(states, [(1,), (2,)]), bound(states, [(1,), (3,)])
    assert alike.shape == (2, PATTERNS * 4000)
    np.testing.assert_array_equal(
        np.abs(alike[0]).reshape(PATTERNS, -1), [np.abs(states[0] - states.mean(0))] * PATTERNS
    )
    np.testing.assert_array_equal(alike[0], other[0])
    cosine = alike[1] @ other[1] / (alike[1] @ alike[1])
    assert abs(cosine) < 4 / 8000**0.5 * 2
    first, second = alike[0].reshape(PATTERNS, -1)
    assert not np.array_equal(np.abs(first), first * np.sign(second) * np.sign(first))  # patterns differ


@pytest.mark.parametrize(
    ("answers", "effective"), [([1, 1, 1, 1], 1), ([1, 2, 3, 4], 4), ([1, 1, 2, 2], 2), ([1, 1, 1, 2], 1.6)]
)
def test_the_effective_number_of_answers(adapt, answers, effective):
    model = adapt()
    rows = [row([5, 9, 3], [answer]) for answer in answers]
    assert describe(model, model.initial_adapter(0), rows).answers == pytest.approx(effective)
    with pytest.raises(DataError, match="without items"):
        describe(model, model.initial_adapter(0), [])
