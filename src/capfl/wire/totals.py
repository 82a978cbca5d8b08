"""The scores of clients as whole numbers whose sums are the scores of all of them together.

Every quantity is a number from 0 on, in units of ``UNIT``, and so a whole number of three digits to the base 2^16. Each
digit is a value of its own in the sum (``maths.masks``), so nothing overflows. Beside them stands one number, 1 of each
client.

Clients that choose among options and such that write completions have other metrics, so of either task there are, in
this order: the clients with such items, their training items, their test items, and of test items the sums of chance
and of the share of the most frequent answer. Then of every model sum and count of each metric, and then the ranks of
every module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capfl.errors import TrainingError, WireError
from capfl.maths.masks import WIDEST, Whole, kind_of
from capfl.metrics import TASKS, metric, of_task
from capfl.types import Evaluation, HeldOut, Score, Tally, Task

UNIT = 2.0**-16
DIGIT, DIGITS = 16, 3  # bits of a digit, digits of a quantity
_SLACK = 1e-3  # by so much rounding may move a sum, relative to its items


@dataclass(frozen=True)
class Together:
    """What some clients, all with items of one task, say together."""

    task: Task
    clients: int
    n_train: int
    test: HeldOut  # number: of all of them; chance and majority: the mean over test items
    scores: Mapping[str, Score]  # by model; the losses are not in it


@dataclass(frozen=True)
class Total:
    """What the sum of all clients' numbers says. ``ranks``: of every module, the mean over clients."""

    tasks: Sequence[Together]
    ranks: Mapping[str, float]


class Totals:
    """How the scores of clients become whole numbers. Everything follows from what both sides know.

    Args:
        models: that are scored.
        names: of the run's metrics.
        ranks: of every module of the adapter, at most.
        clients: how many may be in the sum.

    Raises:
        WireError: so many clients make sums that no value has room for.
    """

    def __init__(self, models: Sequence[str], names: Sequence[str], ranks: Mapping[str, int], clients: int) -> None:
        self.clients, self._models, self._names, self._ranks = clients, models, names, ranks
        self.width = (clients * (2**DIGIT - 1)).bit_length()
        if self.width > WIDEST:
            raise WireError(
                f"a sum of the scores of {clients} clients takes {self.width} bits a value, {WIDEST} at most"
            )

    @property
    def n_values(self) -> int:
        quantities = 5 * len(TASKS) + 2 * len(self._models) * len(self._names) + len(self._ranks)
        return DIGITS * quantities

    @property
    def n_numbers(self) -> int:
        return 1

    def whole(self, said: Evaluation) -> Whole:
        """One client's scores.

        Raises:
            TrainingError: a score is not finite, or larger than anything that can be counted.
        """
        test = said.test
        found: list[float] = []
        for task in TASKS:
            shares = (test.number * (test.chance or 0.0), test.number * (test.majority or 0.0))
            found += [1, said.n_train, test.number, *shares] if task == test.task else [0] * 5
        for model in self._models:
            for name in self._names:
                tally = said.scores[model].metrics.get(name, Tally(0.0, 0))
                found += [tally.sum, tally.count]
        found += [said.ranks[module] for module in self._ranks]
        quantities = np.array(found, np.float64) / UNIT
        if not bool(((quantities >= 0) & (quantities < 2.0 ** (DIGIT * DIGITS))).all()):
            raise TrainingError("a score of this client is not finite, or too large for a sum; see train.learning_rate")
        whole = np.rint(quantities).astype(np.uint64)
        digits = np.stack([(whole >> np.uint64(DIGIT * place)) & np.uint64(2**DIGIT - 1) for place in range(DIGITS)])
        return Whole(digits.T.ravel().astype(kind_of(self.width)), self.width, np.ones(1, np.uint32))

    def read(self, total: Whole, clients: int) -> Total:
        """What the sum of so many clients' numbers, without any mask, says.

        Raises:
            WireError: no scores of so many clients sum to this: somebody has sent others, or a mask is left.
        """
        if (len(total.values), total.width, len(total.numbers)) != (self.n_values, self.width, self.n_numbers):
            raise WireError("a sum has other numbers than the scores of this run")
        if total.numbers.tolist() != [clients] or int(total.values.max(initial=0)) > clients * (2**DIGIT - 1):
            raise WireError(f"the sum of the scores of {clients} clients has numbers that no scores sum to")
        places = UNIT * 2.0 ** (DIGIT * np.arange(DIGITS))
        quantities = iter((total.values.reshape(-1, DIGITS) @ places).tolist())

        def some(n: int) -> list[float]:
            return [next(quantities) for _ in range(n)]

        tasks = {task: some(5) for task in TASKS}
        scores = {model: {name: _tally(name, *some(2)) for name in self._names} for model in self._models}
        ranks = dict(zip(self._ranks, some(len(self._ranks)), strict=True))
        if sum(said[0] for said in tasks.values()) != clients:
            raise WireError(f"the sum of the scores of {clients} clients is one of other clients")
        for module, most in self._ranks.items():
            if not clients <= ranks[module] <= clients * most:
                raise WireError(f"{clients} clients have {ranks[module]:g} ranks of {module!r}, of 1 to {most} each")
        together = [self._together(task, *said, scores=scores) for task, said in tasks.items() if said[0]]
        return Total(together, {module: n / clients for module, n in ranks.items()})

    def _together(
        self, task: Task, clients: float, n_train: float, number: float, chance: float, majority: float,
        *, scores: Mapping[str, Mapping[str, Tally]],
    ) -> Together:  # fmt: skip
        names = of_task(self._names, task)
        if not all(n.is_integer() and n >= clients for n in (n_train, number)):
            raise WireError(f"{clients:g} clients have {n_train:g} training and {number:g} test items together")
        if max(chance, majority) > number * (1 + _SLACK):
            raise WireError(f"of {number:g} test items, {chance:g} and {majority:g} are right by guessing")
        shares = (chance / number, majority / number) if task == "choices" else (None, None)
        own = {model: Score(Tally(0.0, 0), {name: found[name] for name in names}) for model, found in scores.items()}
        return Together(task, int(clients), int(n_train), HeldOut(int(number), *shares), own)


def _tally(name: str, sum: float, count: float) -> Tally:
    """Raises WireError: a metric has a sum or a count that it cannot have."""
    if not count.is_integer() or (metric(name).is_share and sum > count * (1 + _SLACK)):
        raise WireError(f"a sum of {name} is {sum:g} of {count:g}")
    return Tally(sum, int(count))
