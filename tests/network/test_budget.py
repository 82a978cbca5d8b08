"""The epsilon that all runs of a node may take together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

from capfl.engines.flower.budget import RUNS, Budget
from capfl.errors import CheckpointError, ConfigError
from capfl.taken import TAKEN


def test_what_other_runs_have_taken_is_not_left(tmp_path: Path) -> None:
    for run, epsilon in (("winter", 2.5), ("spring", 1.25)):
        (tmp_path / RUNS / run).mkdir(parents=True)
        (tmp_path / RUNS / run / TAKEN).write_text(json.dumps({"trainings": 3, "epsilon": epsilon}))
    (tmp_path / RUNS / "summer").mkdir()  # it has not trained
    budget = Budget(4.0, tmp_path)
    assert [budget.left(run) for run in ("winter", "spring", "summer", "autumn")] == [2.75, 1.5, 0.25, 0.25]
    assert budget.said() == "runs may take epsilon 4 of this site's items together, and have taken 3.75"
    assert Budget(3.0, tmp_path).left("autumn") == 0.0
    for damaged in ("{", "{}", "[]", '{"trainings": "x", "epsilon": 1}', '{"trainings": 1, "epsilon": NaN}'):
        (tmp_path / RUNS / "spring" / TAKEN).write_text(damaged)
        with pytest.raises(CheckpointError, match=f"{TAKEN} is damaged: it says how often this site has trained"):
            budget.left("winter")


@pytest.mark.parametrize("most", [0.0, -1.0, float("nan")])
def test_a_budget_of_nothing_is_refused(most: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--max-epsilon: .* allows no run; give a number above 0, such as 8"):
        Budget(most, tmp_path)
