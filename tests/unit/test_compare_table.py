"""The numbers of a comparison's table, from runs whose numbers are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfl.compare.results import Result
from capfl.compare.spec import Plan, make_plan
from capfl.compare.table import against_alone, as_csv, columns, difference, make_rows, markdown
from capfl.config import Config
from capfl.report.summary import ClientRow, Summary
from capfl.types import Entry

LEDGER = (Entry(1, "c0", "up", 2000, {}), Entry(1, "c0", "down", 1000, {}))


def result(
    label: str, seed: int, *personal: float, local_only: float | None = None, tokens: float | None = None
) -> Result:
    """A run of one client for each score, 400 test items each; and one more client with another metric."""
    rows = [
        ClientRow(f"c{i}", 100, 400, 0.3, None, score, local_only, None, 4.0, {}, 0.25, 0.3, 0, 0)
        for i, score in enumerate(personal)
    ]
    if tokens is not None:
        rows.append(ClientRow("t", 1, 400, 0.1, None, tokens, None, None, 4.0, {}, None, None, 0, 0, "token accuracy"))
    summary = Summary(label, 2, tuple(rows), LEDGER, 0, (), {}, 60.0, 2 * 10**9)
    return Result(label, seed, Path(), Config(), summary, (), len(rows))


ALONE = {0: result("local", 0, 0.5, 0.5), 1: result("local", 1, 0.5, 0.7)}
BETTER = {0: result("fedit", 0, 0.6, 0.8), 1: result("fedit", 1, 0.8, 0.8)}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "base.toml").touch()
    (tmp_path / "spec.toml").write_text('base = "base.toml"\nseeds = [0, 1]\n[variants.local]\n[variants.fedit]\n')
    return make_plan(tmp_path / "spec.toml")


def test_differences_are_mine_minus_theirs_paired_by_client() -> None:
    found = difference(BETTER, ALONE, "personal")
    assert found
    assert found.mean == pytest.approx((0.1 + 0.3 + 0.3 + 0.1) / 4)
    assert (found.low, found.high) == pytest.approx((0.1, 0.3))
    assert difference(BETTER, {2: ALONE[0]}, "personal") is None  # no seed in common
    assert difference(BETTER, ALONE, "shared") is None


def test_clients_are_held_to_what_they_have_alone(plan: Plan) -> None:
    mine = {0: result("fedit", 0, 0.49, 0.3), 1: result("fedit", 1, 0.9, 0.9)}
    pairs = [(0.49, 0.5, 400), (0.3, 0.5, 400), (0.9, 0.5, 400), (0.9, 0.7, 400)]
    assert against_alone(mine, ALONE, "personal") == pairs
    assert against_alone(mine, {}, "personal") == []
    own = {0: result("fedit", 0, 0.5, 0.5, local_only=0.9)}
    assert against_alone(own, ALONE, "personal") == [(0.5, 0.9, 400)] * 2  # the run's own reference goes before
    local, fedit, good = make_rows({"base": {"local": ALONE, "fedit": mine, "good": BETTER}}, plan)
    assert fedit.worse_off == 0.25  # 0.49 is not clearly below 0.5, 0.3 is
    assert (local.most_lost, fedit.most_lost, good.most_lost) == (None, pytest.approx(0.2), 0.0)


def test_the_rows_and_their_markdown(plan: Plan) -> None:
    local, fedit = rows = make_rows({"base": {"local": ALONE, "fedit": BETTER}}, plan)
    assert fedit.worst == (0.6, 0.8)
    assert fedit.bytes_up == (500.0, 500.0)  # 2000 bytes, two clients, two rounds
    assert fedit.bytes_total == (1500.0, 1500.0)
    assert local.difference is None
    cells = dict(columns(rows, "local"))
    assert cells["personal, %"] == ["55.0 ± 7.1", "75.0 ± 7.1"]
    assert (cells["clearly worse off"], cells["most lost"]) == (["", "0 %"], ["", "0.0"])
    assert "shared, %" not in cells  # nobody has it
    assert cells["memory"] == ["2 GB", "2 GB"]
    assert cells["against local"][1].startswith("+20.0 (")
    assert "crosses 0 |" not in markdown(rows, plan)
    assert "**base**: accuracy; chance 25.0 ± 0.0 %; base model 30.0 ± 0.0 %" in markdown(rows, plan)
    turned = make_rows({"base": {"local": ALONE, "fedit": {0: result("fedit", 0, 0.4, 0.6)}}}, plan)
    assert "| +0.0 (-10.0 to +10.0), crosses 0 |" in markdown(turned, plan)


def test_each_metric_has_rows_of_its_own(plan: Plan) -> None:
    runs = {"local": {0: result("local", 0, 0.5, tokens=0.9)}, "fedit": {0: result("fedit", 0, 0.7, tokens=0.8)}}
    rows = make_rows({"base": runs}, plan)
    assert [(row.metric, row.label, row.personal) for row in rows] == [
        ("accuracy", "local", (0.5,)), ("accuracy", "fedit", (0.7,)),
        ("token accuracy", "local", (0.9,)), ("token accuracy", "fedit", (0.8,)),
    ]  # fmt: skip
    assert {row.bytes_total for row in rows} == {(1500.0,)}  # for each of both clients
    assert [row.most_lost for row in rows] == [None, 0.0, None, pytest.approx(0.1)]
    assert markdown(rows, plan).count("**base**: ") == 2
    assert as_csv(rows).splitlines()[3].startswith("base,token accuracy,local,0,,,0.1,,")
