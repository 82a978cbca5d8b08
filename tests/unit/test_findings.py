"""The sentence that says whether joining paid, for whom, and whether the test items are enough to tell."""

from __future__ import annotations

import math

import pytest

from capfl.report.findings import findings, glossary, verdicts
from capfl.report.summary import TOGETHER, Summary, variance_of
from scored import client_row
from unit.test_tables import LEDGER


def verdict(*gains: float, items: int = 400, alone: float = 0.5) -> str:
    rows = [
        client_row(name, items=items, personal=alone + gain, local_only=alone)
        for name, gain in zip("abc", gains, strict=False)
    ]
    (said,) = verdicts(Summary("ca-pfl", 3, tuple(rows), LEDGER, 0, (), {}, 1.0, 10**9))
    return said


def test_it_paid_for_all() -> None:
    margin = 100 * 1.96 * math.sqrt(2 * (variance_of(0.5, 400) + variance_of(0.6, 400))) / 2
    assert verdict(0.1, 0.1) == (
        f"joining paid (+10.0 points ± {margin:.1f} by the personal adapter against training alone, on average): "
        "2 of 2 better (a, b), 0 of 2 worse"
    )


@pytest.mark.parametrize(
    ("gains", "begins", "ends"),
    [
        ((0.3, 0.3, -0.2), "joining paid (+13.3 points", "2 of 3 better (a, b), 1 of 3 worse (c), clearly so (c)"),
        ((0.3, -0.01), "joining paid (+14.5 points", "1 of 2 better (a), 1 of 2 worse (b), nobody clearly"),
        ((-0.2, 0.0), "joining did not pay (-10.0 points", "0 of 2 better, 1 of 2 worse (a), clearly so (a)"),
        ((0.01, -0.005), "800 test items are too few to tell whether joining paid (+0.3 points ± 4.9",
         "1 of 2 better (a), 1 of 2 worse (b), nobody clearly"),
        ((0.0, 0.0), "800 test items are too few to tell whether joining paid (+0.0 points",
         "0 of 2 better, 0 of 2 worse"),
    ],
)  # fmt: skip
def test_it_paid_for_some(gains: tuple[float, ...], begins: str, ends: str) -> None:
    said = verdict(*gains)
    assert said.startswith(begins)
    assert said.endswith(ends)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_that_all_are_right_or_none_is_not_certain(share: float) -> None:
    assert variance_of(share, 4) == pytest.approx((1 / 6) * (5 / 6) / 6)
    said = verdict(0.0, alone=share, items=4)  # 1.96 sqrt(2 x 5 / 216)
    assert said.startswith("4 test items are too few to tell whether joining paid (+0.0 points ± 42.2")


def test_with_few_items_it_cannot_be_told_what_with_many_can() -> None:
    assert verdict(0.1, 0.1, items=20).startswith("40 test items are too few to tell whether joining paid")
    assert verdict(0.1, 0.1, items=4000).startswith("joining paid")


def test_of_scores_that_are_known_in_sum_alone_nobody_is_counted() -> None:
    row = client_row(TOGETHER, items=4000, personal=0.6, local_only=0.5)
    (said,) = verdicts(Summary("fedit", 3, (row,), LEDGER, 0, (), {}, 1.0, 10**9))
    assert said.startswith("joining paid (+10.0 points")
    assert said.endswith(": only the sum of clients' scores is known")


def test_training_alone_joins_nobody() -> None:
    row = client_row("a", personal=0.5, local_only=0.5)
    alone = Summary("local", 3, (row,), LEDGER, 0, (), {}, 1.0, 10**9)
    assert verdicts(alone) == []
    assert findings(alone)[0].startswith("chance 25.0 %")
    assert any(line.startswith("personal: the client's own adapter") for line in glossary(alone))
