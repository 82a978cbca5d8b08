"""The numbers of a comparison's table, from runs whose numbers are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from capfl.compare.results import Result
from capfl.compare.spec import make_plan
from capfl.compare.table import against_alone, columns, difference, make_rows, markdown
from capfl.config import Config
from capfl.types import Entry, RoundRecord


def result(label: str, seed: int, personal: list[float], validated: tuple[float, ...] = ()) -> Result:
    """A run of one client for each accuracy, 400 test items each, 1000 bytes up and 500 down a round."""
    clients = [
        {
            "id": f"c{i}",
            "n_test": 400,
            "chance": 0.25,
            "base": 0.3,
            "global": None,
            "personal": value,
            "local_only": None,
            "rank": 4.0,
        }
        for i, value in enumerate(personal)
    ]
    ledger = [Entry(1, "c0", "up", 1000, {}), Entry(1, "c0", "down", 500, {})]
    records = tuple(
        RoundRecord(n, ("c0",), {"c0": 1.0}, {"c0": 1}, (), tuple(ledger), 0.0, accuracy)
        for n, accuracy in enumerate(validated, start=1)
    )
    sizes = {"up": 2000, "down": 1000, "total": 3000}
    summary = {"method": label, "rounds": 2, "clients": clients, "bytes": sizes, "seconds": 60.0, "peak_memory": 2e9}
    return Result(label, seed, Path(), Config(), summary, records)


ALONE = {0: result("local", 0, [0.5, 0.5], (0.3, 0.6)), 1: result("local", 1, [0.5, 0.7], (0.3, 0.8))}
BETTER = {0: result("fedit", 0, [0.6, 0.8], (0.4, 0.65)), 1: result("fedit", 1, [0.8, 0.8], (0.1, 0.2))}


def test_differences_are_mine_minus_theirs_paired_by_client() -> None:
    found = difference(BETTER, ALONE, "personal")
    assert found
    assert found.mean == pytest.approx((0.1 + 0.3 + 0.3 + 0.1) / 4)
    assert (found.low, found.high) == pytest.approx((0.1, 0.3))
    back = difference(ALONE, BETTER, "personal")
    assert back
    assert back.mean == pytest.approx(-found.mean)
    assert difference(BETTER, {2: ALONE[0]}, "personal") is None  # no seed in common
    assert difference(BETTER, ALONE, "global") is None


def test_clients_are_held_to_what_they_have_alone(tmp_path: Path) -> None:
    mine = {0: result("fedit", 0, [0.49, 0.3]), 1: result("fedit", 1, [0.9, 0.9])}
    assert against_alone(mine, ALONE, "personal") == [
        (0.49, 0.5, 400),
        (0.3, 0.5, 400),
        (0.9, 0.5, 400),
        (0.9, 0.7, 400),
    ]
    assert against_alone(mine, {}, "personal") == []
    own = {0: result("fedit", 0, [0.5, 0.5])}
    for row in own[0].clients:
        row["local_only"] = 0.9
    assert against_alone(own, ALONE, "personal") == [(0.5, 0.9, 400)] * 2  # the run's own reference goes before
    (tmp_path / "base.toml").touch()
    (tmp_path / "spec.toml").write_text('base = "base.toml"\n[variants.local]\n[variants.fedit]\n[variants.good]\n')
    runs = {"local": ALONE, "fedit": mine, "good": BETTER}
    local, fedit, good = make_rows({"base": runs}, make_plan(tmp_path / "spec.toml"))
    assert fedit.worse_off == 0.25  # 0.49 is not clearly below 0.5, 0.3 is
    assert (local.most_lost, fedit.most_lost, good.most_lost) == (None, pytest.approx(0.2), 0.0)


def test_the_rows_and_their_markdown(tmp_path: Path) -> None:
    (tmp_path / "base.toml").touch()
    (tmp_path / "spec.toml").write_text(
        'base = "base.toml"\nseeds = [0, 1]\nbudgets = [1500, 100000]\n[variants.local]\n[variants.fedit]\n'
    )
    plan = make_plan(tmp_path / "spec.toml")
    local, fedit = rows = make_rows({"base": {"local": ALONE, "fedit": BETTER}}, plan)
    assert fedit.worst == (0.6, 0.8)
    assert fedit.bytes_up == (500.0, 500.0)  # 2000 bytes, two clients, two rounds
    assert fedit.bytes_total == (1500.0, 1500.0)
    assert fedit.target == pytest.approx((0.59, 0.79))  # where local ended, less one point
    assert fedit.bytes_to_target == (1500.0, None)  # two rounds of 1500 bytes shared by two clients
    assert fedit.within == {1500: (0.65, 0.2), 100000: (0.65, 0.2)}
    assert local.difference is None
    cells = dict(columns(rows, "local"))
    assert cells["to target"] == ["1.5 kB", "1.5 kB (1 of 2 seeds)"]
    assert cells["personal, %"] == ["55.0 ± 7.1", "75.0 ± 7.1"]
    assert cells["clearly worse off"] == ["", "0 %"]
    assert cells["most lost"] == ["", "0.0"]
    assert "global, %" not in cells  # nobody has it
    assert cells["memory"] == ["2 GB", "2 GB"]
    assert cells["against local"][1].startswith("+20.0 (")
    assert "crosses 0 |" not in markdown(rows, plan)
    assert "**base**: chance 25.0 ± 0.0 %; base model 30.0 ± 0.0 %" in markdown(rows, plan)
    turned = make_rows({"base": {"local": ALONE, "fedit": {0: result("fedit", 0, [0.4, 0.6])}}}, plan)
    assert "| +0.0 (-10.0 to +10.0), crosses 0 |" in markdown(turned, plan)
