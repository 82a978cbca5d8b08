"""What a client says of its data: of the frozen base, the same whatever the batch, and blind to answers in one part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from capfl.errors import DataError
from capfl.model.features import FREE, PATTERNS, bound, describe, lengths, repeated
from capfl.model.tokens import Row

D = 32
PROMPTS = [[5, 9, 200, 31], [7, 7], [100, 3, 18, 44, 2, 61]]


def row(prompt: list[int], answer: list[int]) -> Row:
    return Row(np.array([*prompt, *answer[:-1]], np.int32), np.array(answer, np.int32))


ROWS = [row(prompt, [11 + n % 2]) for n, prompt in enumerate(PROMPTS)]


def test_the_prompts_part_does_not_see_the_answer_and_the_bound_part_does(adapt):
    model = adapt()
    others = [row(prompt, [90 + n, 13, 8][: n + 1]) for n, prompt in enumerate(PROMPTS)]
    one, other = describe(model, ROWS), describe(model, others)
    torch.testing.assert_close(one["features"][:D], other["features"][:D], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one["deviation"], other["deviation"], rtol=1e-4, atol=1e-6)
    assert (one["features"][D:] - other["features"][D:]).abs().max() > 1e-3


def test_it_is_the_same_whatever_the_batch_and_the_adapter(adapt, wander):
    model = adapt()
    whole = describe(model, ROWS, True)
    assert {name: len(vector) for name, vector in whole.items()} == lengths(model)
    assert describe(model, ROWS).keys() == lengths(model).keys() - {"texts"}
    for batch_size in (1, 2):
        model.write(wander(model))
        found = describe(model, ROWS, True, batch_size)
        for name, vector in whole.items():
            assert vector.dtype == torch.float32
            torch.testing.assert_close(found[name], vector, rtol=1e-4, atol=1e-6)


def test_a_prompt_is_the_mean_over_its_tokens_but_the_first_at_a_quarter_of_the_depth(adapt):
    model = adapt()
    model.write(model.initial_adapter(0))
    states = []
    for prompt in PROMPTS:
        with torch.no_grad():
            found = model.base.module(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
        states.append(found[len(model.layers) // 4][0, 1:].double().mean(0).numpy())
    long = [row(prompt, [11, 12, 13]) for prompt in PROMPTS]  # the rest of the answer is not looked at
    for rows in (ROWS, long):
        said = describe(model, rows)
        np.testing.assert_allclose(said["features"][:D], np.mean(states, 0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(said["deviation"], np.std(states, 0), rtol=1e-4, atol=1e-6)
    expected = bound(np.stack(states), [(11,), (12,), (11,)]).mean(0)
    np.testing.assert_allclose(describe(model, ROWS)["features"][D:], expected, rtol=1e-3, atol=1e-6)
    alone = describe(model, [row([5], [11])])["features"]
    assert alone.isfinite().all()
    assert alone[:D].any()


def test_bound_states_agree_where_answers_do():
    generator = np.random.default_rng(0)
    states = generator.normal(size=(2, 4000))
    alike, other = bound(states, [(1,), (2,)]), bound(states, [(1,), (3,)])
    first, second = alike[0].reshape(PATTERNS, -1)
    centred = states[0] - states.mean(0)
    np.testing.assert_array_equal(np.abs([first, second]), [np.abs(centred)] * 2)
    assert not np.array_equal(first, second)  # patterns differ
    np.testing.assert_array_equal(alike[0], other[0])
    cosine = alike[1] @ other[1] / (alike[1] @ alike[1])
    assert abs(cosine) < 4 / 8000**0.5 * 2


@pytest.mark.parametrize(("answers", "effective"), [([1, 1, 1, 1], 1), ([1, 2, 3, 4], 4), ([1, 1, 1, 2], 1.6)])
def test_the_effective_number_of_answers(adapt, answers, effective):
    rows = [row([5, 9, 3], [answer]) for answer in answers]
    assert describe(adapt(), rows)["answers"].tolist() == pytest.approx([effective])


def test_the_share_of_phrases_to_be_expected_in_another_text():
    assert repeated([(1, 2, 3)]) == 0  # nobody to share it with
    assert repeated([(1, 2, 3), (1, 2, 3), (1, 2)]) == pytest.approx(1 / 3)  # shorter than a phrase: equal in whole
    # of the phrases 1234 and 2345 of the first, one is in the second; of the second's only one, it is in the first
    assert repeated([(1, 2, 3, 4, 5), (2, 3, 4, 5)]) == pytest.approx((0.5 + 1) / 2)
    assert repeated([(7, 7, 7, 7, 7, 7), (7, 7, 7, 7)]) == 1  # a phrase counts once for each text
    pool = [tuple(generator.integers(0, 4, 5)) for generator in [np.random.default_rng(0)] for _ in range(900)]
    few = np.mean([repeated(pool[i : i + 20]) for i in range(0, 900, 20)])
    assert few == pytest.approx(repeated(pool), rel=0.25)  # more texts do not change what to expect
    assert repeated(pool * 20) == pytest.approx(repeated(pool), rel=0.25)  # counted on a part


def test_texts_that_repeat_phrases(adapt):
    pattern = [11, 12, 13, 14]
    rows = [row(prompt, [*pattern, n]) for n, prompt in enumerate(PROMPTS)]
    assert float(describe(adapt(), rows, True)["answers"]) == pytest.approx(
        1 / repeated([tuple(r.targets.tolist()) for r in rows])
    )


def test_a_client_without_items(adapt):
    with pytest.raises(DataError, match="without items"):
        describe(adapt(), [])


def test_a_text_is_described_by_the_states_of_its_tokens_and_bound_to_its_prompt_if_texts_come_again(adapt):
    model = adapt()
    model.write(model.initial_adapter(0))
    answers = [[11, 12, 13], [11, 12, 13], [14, 15]]
    rows = [row(prompt, answer) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    states = []
    for one, prompt in zip(rows, PROMPTS, strict=True):
        with torch.no_grad():
            found = model.base.module(input_ids=torch.tensor(one.ids[None]), output_hidden_states=True).hidden_states
        states.append(found[len(model.layers) // 4][0].double().numpy()[len(prompt) :].mean(0))
    said, as_options = describe(model, rows, True), describe(model, rows)
    np.testing.assert_allclose(said["texts"][:D], np.mean(states, 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(said["texts"][D:], np.std(states, 0), rtol=1e-4, atol=1e-6)
    assert float(as_options["answers"]) == pytest.approx(1 / (4 / 9 + 1 / 9))
    for name in ("features", "answers"):  # two of three texts come again, so they are bound as options are
        torch.testing.assert_close(said[name], as_options[name])
    unique = describe(model, [row(prompt, [11, n]) for n, prompt in enumerate(PROMPTS)], True)
    assert float(unique["answers"]) == FREE
    assert not unique["features"][D:].any()
