"""Metrics: what each is called, what it counts, and how a written answer is compared with the right one.

Every metric is a sum over items or answer tokens, and their number; so clients can say it in two numbers, and sums of
several clients add up. docs/evaluation.md says when to use which.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from capfl.errors import ConfigError
from capfl.types import Tally, Task

TASKS: tuple[Task, ...] = ("choices", "completions")
Compare = Callable[[str, str, Mapping[str, str]], float]
"""(answer, right answer, other fields of the row) -> between 0 and 1."""

LARGEST = 700.0  # nats a token, from which on a perplexity is no larger: e^710 is no float64
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OWN = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: in ``evaluation.metrics``, and wherever its numbers stand.
        words: what the numbers are, for people.
        task: of the items that it measures.
        counts: what its sum is taken over.
        is_share: is it between 0 and 1, and more of it better? Otherwise it is a perplexity, and less of it better.
        compare: of an answer that the model has written; None: the metric follows from the model's probabilities.
    """

    name: str
    words: str
    task: Task = "completions"
    counts: Literal["items", "tokens"] = "items"
    is_share: bool = True
    compare: Compare | None = None

    def value(self, tally: Tally) -> float:
        """The mean of a share, or e to the mean of negative log-likelihoods; not a number of nothing."""
        if not tally.count:
            return math.nan
        mean = tally.sum / tally.count
        return mean if self.is_share else math.exp(min(mean, LARGEST))

    def gain(self, mine: float, other: float) -> float:
        """By how much ``mine`` is better than ``other``; negative if it is worse."""
        return mine - other if self.is_share else other - mine

    def worst(self, values: Sequence[float]) -> float:
        return min(values) if self.is_share else max(values)


# -- comparing texts -------------------------------------------------------------------------------------


def exact_match(answer: str, right: str, fields: Mapping[str, str]) -> float:
    """1 if they are equal but for white space: runs of it count as one space, and at the ends it does not count."""
    return float(answer.split() == right.split())


def token_f1(answer: str, right: str, fields: Mapping[str, str]) -> float:
    """F1 of the words that both have, as SQuAD measures it (Rajpurkar et al., arXiv:1606.05250).

    Case, ASCII punctuation, the articles a, an and the, and the order of words do not count.
    """
    mine, other = (_ARTICLES.sub(" ", t.lower().translate(_NO_PUNCTUATION)).split() for t in (answer, right))
    return _f1(sum((Counter(mine) & Counter(other)).values()), len(mine), len(other))


def rouge_l(answer: str, right: str, fields: Mapping[str, str]) -> float:
    """F1 of the longest common subsequence of words (Lin, ROUGE, 2004, section 3.1).

    Words are runs of letters and digits of any script, in lower case, and are not stemmed.
    """
    mine, other = (re.findall(r"\w+", text.lower()) for text in (answer, right))
    return _f1(longest_common(mine, other), len(mine), len(other))


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    A column of the table is one integer, whose zero bits are the places of ``a`` where the length grows (Hyyrö, 2004).
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    column = whole = (1 << len(a)) - 1
    for word in b:
        met = column & places.get(word, 0)
        column = (column + met) | (column - met)
    return len(a) - (column & whole).bit_count()


def _f1(common: int, mine: int, other: int) -> float:
    """Where one of the texts has no word, 1 if neither has."""
    if not (mine and other):
        return float(mine == other)
    return 2 * common / (mine + other)


def chrf(answer: str, right: str, fields: Mapping[str, str]) -> float:
    """chrF2 of one sentence by sacrebleu: F-score of runs of one to six characters (Popović, 2015)."""
    return _of_sacrebleu("sentence_chrf", answer, right)


def bleu(answer: str, right: str, fields: Mapping[str, str]) -> float:
    """BLEU of one sentence by sacrebleu, smoothed (exp), with runs of no more words than the answer has."""
    return _of_sacrebleu("sentence_bleu", answer, right)


def _of_sacrebleu(name: str, answer: str, right: str) -> float:
    score = getattr(_sacrebleu(), name)(answer, [right]).score
    return min(1.0, max(0.0, float(score) / 100))


def _sacrebleu() -> Any:
    try:
        return importlib.import_module("sacrebleu")
    except ImportError as error:
        raise ConfigError(
            "evaluation.metrics: chrf and bleu need the package sacrebleu; pip install 'capfl[metrics]'"
        ) from error


# -- which there are -------------------------------------------------------------------------------------

METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "right answers", "choices"),
        Metric("perplexity", "perplexity of a token of the right answers", counts="tokens", is_share=False),
        Metric("token_accuracy", "tokens of the right answers that are the likeliest", counts="tokens"),
        Metric("exact_match", "written answers that are the right one, but for white space", compare=exact_match),
        Metric("token_f1", "words in common with the right answer (F1)", compare=token_f1),
        Metric("rouge_l", "words in common with the right answer, in its order (ROUGE-L)", compare=rouge_l),
        Metric("chrf", "runs of characters in common with the right answer (chrF)", compare=chrf),
        Metric("bleu", "runs of words in common with the right answer (BLEU)", compare=bleu),
    )
}
VALIDATED = ("accuracy", "perplexity", "token_accuracy")
"""What a validation measures: all that costs nothing beside the loss."""

DEFAULTS = ("accuracy", "perplexity", "token_accuracy", "exact_match", "rouge_l")


def metric(name: str) -> Metric:
    """The metric of a name, which may be that of a function, ``module:function``; nothing is imported for it.

    Raises:
        ConfigError: there is none.
    """
    if name in METRICS:
        return METRICS[name]
    if not _OWN.match(name):
        near = get_close_matches(name, METRICS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no metric is called {name!r}{hint} Choose from {', '.join(METRICS)}, or module:function")
    return Metric(name, f"{name} of written answers", compare=lambda *texts: _checked(name, *texts))


def of_task(names: Sequence[str], task: Task) -> tuple[str, ...]:
    """Those of the metrics that measure items of a task, in their order."""
    return tuple(name for name in names if metric(name).task == task)


def written(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the metrics for which a model has to write answers."""
    return tuple(name for name in names if metric(name).compare)


def is_own(name: str) -> bool:
    """Is a metric a function of the user's own?"""
    return ":" in name


def require(names: Sequence[str]) -> None:
    """See that everything is here that metrics need: packages, and functions of the user's own, which are imported.

    Raises:
        ConfigError: something is not.
    """
    for name in names:
        if is_own(name):
            _check_call(name)
        elif name in ("chrf", "bleu"):
            _sacrebleu()


def named(given: Iterable[str | Compare]) -> list[str]:
    """Names of metrics, from names and functions. Raises ConfigError: as ``name_of``."""
    return [one if isinstance(one, str) else name_of(one) for one in given]


def name_of(function: Compare) -> str:
    """The name ``module:function`` of a function.

    Raises:
        ConfigError: it cannot be found by that name, as a lambda or one inside another function.
    """
    name = f"{getattr(function, '__module__', None)}:{getattr(function, '__qualname__', function)}"
    if _OWN.match(name) and _function(name) is function:
        return name
    raise ConfigError(f"evaluation.metrics: {name} cannot be found by its name; give a function of a module")


def _function(name: str) -> Compare:
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"evaluation.metrics: there is no function {name}: {error}; check its name and PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"evaluation.metrics: {name} is no function")
    return found  # type: ignore[no-any-return]


def _check_call(name: str) -> None:
    """Raises ConfigError: there is no such function, or it does not take what ``_checked`` gives it."""
    function = _function(name)
    try:
        inspect.signature(function).bind("answer", "right answer", {})
    except TypeError as error:
        raise ConfigError(
            f"evaluation.metrics: {name} cannot be called with (answer, right, fields): {error}; let it take them"
        ) from error
    except ValueError:  # written in C, some say nothing of what they take
        pass


def _checked(name: str, answer: str, right: str, fields: Mapping[str, str]) -> float:
    """What a function of the user's own makes of an answer. Raises ConfigError: no number between 0 and 1."""
    try:
        found: object = _function(name)(answer, right, fields)
    except SystemExit as error:
        raise ConfigError(
            f"evaluation.metrics: {name} tried to end the program; let it return a number between 0 and 1"
        ) from error
    try:
        value = float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(
            f"evaluation.metrics: {name} gave {found!r}; let it give a number between 0 and 1, and go on with --resume"
        )
    return value
