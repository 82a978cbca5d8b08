"""Metrics, by values that can be worked out by hand; those of sacrebleu by its own."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest

from capfl import metrics
from capfl.config import load_config
from capfl.errors import ConfigError
from capfl.metrics import METRICS, exact_match, longest_common, metric, name_of, rouge_l, token_f1
from capfl.types import Tally


def letters(answer: str, right: str, fields: dict[str, str]) -> float:
    """A metric of one's own: the share of the right answer's letters, unless the row says that it does not count."""
    return 0.0 if fields.get("counts") == "no" else len(set(answer) & set(right)) / len(set(right))


def two(answer: str, right: str) -> float:
    return 1.0


def ending(answer: str, right: str, fields: dict[str, str]) -> float:
    raise SystemExit(0)


def outside(answer: str, right: str, fields: dict[str, str]) -> float:
    return 1.5


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1", "rouge"),
    [
        ("SELECT a\n  FROM t ", "SELECT a FROM t", 1, 1, 1),
        ("select a from t", "SELECT a FROM t", 0, 1, 1),  # case is no detail of a query
        ("the cat sat", "The cat sat.", 0, 1, 1),
        ("a b c d", "d c b a", 0, 1, 0.25),  # SQuAD leaves the article out
        ("", "", 1, 1, 1),
        ("", "word", 0, 0, 0),
        ("?", "!", 0, 1, 1),  # no words on either side
        ("Grüße nach München", "Grüße aus München", 0, 2 / 3, 2 / 3),  # letters of any script
        ("one two three", "one three", 0, 0.8, 0.8),
    ],
)  # fmt: skip
def test_texts_are_compared(answer: str, right: str, exact: float, f1: float, rouge: float) -> None:
    assert exact_match(answer, right, {}) == exact
    assert token_f1(answer, right, {}) == pytest.approx(f1)
    assert rouge_l(answer, right, {}) == pytest.approx(rouge)


def test_the_longest_common_subsequence_against_all_of_them() -> None:
    draw = random.Random(0)
    for _ in range(40):
        a, b = ([draw.choice("xyz") for _ in range(draw.randint(0, 7))] for _ in range(2))

        def all_of(words: list[str]) -> set[tuple[str, ...]]:
            return {tuple(some) for n in range(len(words) + 1) for some in combinations(words, n)}

        assert longest_common(a, b) == max(map(len, all_of(a) & all_of(b)))


def test_chrf_and_bleu_are_those_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pair = ("the cat sat on a mat", "the cat sits on the mat")
    assert METRICS["chrf"].compare(*pair, {}) == pytest.approx(sacrebleu.sentence_chrf(pair[0], [pair[1]]).score / 100)
    assert METRICS["bleu"].compare(*pair, {}) == pytest.approx(sacrebleu.sentence_bleu(pair[0], [pair[1]]).score / 100)
    assert METRICS["bleu"].compare(pair[0], pair[0], {}) == METRICS["chrf"].compare(pair[0], pair[0], {}) == 1.0


def test_a_perplexity_is_of_a_token_and_less_is_better() -> None:
    perplexity, share = metric("perplexity"), metric("rouge_l")
    assert perplexity.value(Tally(10 * math.log(3), 10)) == pytest.approx(3)
    assert perplexity.value(Tally(1e9, 10)) == math.exp(metrics.LARGEST)
    assert (perplexity.gain(2.0, 3.0), share.gain(0.5, 0.25)) == (1.0, 0.25)
    assert (perplexity.worst([2.0, 3.0]), share.worst([0.5, 0.25])) == (3.0, 0.25)
    assert math.isnan(share.value(Tally(0, 0)))


def test_a_function_of_ones_own() -> None:
    name = name_of(letters)
    compare = metric(name).compare
    assert compare is not None
    assert (compare("abx", "abcd", {}), compare("abcd", "abcd", {"counts": "no"})) == (0.5, 0.0)
    with pytest.raises(ConfigError, match=r"outside gave 1\.5; let it give a number between 0 and 1"):
        metric(name_of(outside)).compare("", "", {})  # type: ignore[misc]
    with pytest.raises(ConfigError, match="ending tried to end the program; let it return a number"):
        metric(name_of(ending)).compare("", "", {})  # type: ignore[misc]
    with pytest.raises(ConfigError, match="cannot be found by its name; give a function of a module"):
        name_of(lambda answer, right, fields: 1.0)
    for wrong, said in (
        ("no_such_module:f", "there is no function"),
        ("math:no_such", "no attribute"),
        ("math:pi", "is no function"),
        (f"{__name__}:two", "cannot be called with \\(answer, right, fields\\): too many positional arguments"),
    ):
        with pytest.raises(ConfigError, match=said):
            metrics.require([wrong])


def test_names_that_are_none_are_refused_with_the_config() -> None:
    for given, said in (
        (["rouge-l"], r"did you mean rouge_l\?"),
        (["os.system"], "no metric is called 'os.system'"),
        (["chrf", "chrf"], "names one twice"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(None, {"evaluation.metrics": given})
    with pytest.raises(ConfigError, match=r"keep = best needs validation items; set partition.validation above 0"):
        load_config(None, {"evaluation.keep": "best", "partition.validation": 0})
    with pytest.raises(ConfigError, match="patience needs validations"):
        load_config(None, {"evaluation.patience": 2, "evaluation.every": 0})
