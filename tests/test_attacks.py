"""Runs under attack: two of ten clients do not do what they should, and the others learn all the same."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from attacks import ADMITTED, LEARNS, REFUSED, VILLAINS, attacked, colours
from capfl.config import load_config
from capfl.engines.serial import serial
from capfl.errors import ClientError
from capfl.experiment import run
from capfl.report.summary import Summary


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("data") / "colours.jsonl")


def play(out: Path, data: Path, attack: str | None, **changes: object) -> Summary:
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(None, {**LEARNS, **settings, "data.sets": [str(data)], "out": str(out)})
    engine = attacked(serial, (ADMITTED | REFUSED)[attack], VILLAINS) if attack else serial
    return run(config, engine)[0]


# -- what is refused -----------------------------------------------------------------------------------------

SHORT: dict[str, object] = {"federation__rounds": 2, "train__steps": 1, "train__batch_size": 4}


@pytest.mark.parametrize("attack", ["NaN", "huge", "replayed", "wrong rank", "wrong schema", "all items of the world"])
def test_a_run_goes_on_without_those_that_are_refused(attack: str, runs: Path, data: Path) -> None:
    summary = play(runs, data, attack, **SHORT)
    assert summary.failures == 4
    records = [json.loads(line) for line in (runs / "rounds.jsonl").read_text().splitlines()]
    for record in records:
        assert [failure["client"] for failure in record["failures"]] == list(VILLAINS)
        assert {failure["stage"] for failure in record["failures"]} == {"decode"}
        assert len(record["clients"]) == 8
        up = {e["client"]: e for e in record["ledger"] if e["direction"] == "up"}
        assert all(up[client]["parts"] == {"unreadable": up[client]["bytes"]} for client in VILLAINS)


def test_the_policy_stays_in_charge(runs: Path, data: Path) -> None:
    with pytest.raises(ClientError, match=r"client '03' failed in round 1 \(decode\): update has norm .*max_norm"):
        play(runs / "stop", data, "huge", federation__on_failure="stop", **SHORT)
    summary = play(runs / "retry", data, "huge", federation__on_failure="retry", **SHORT)
    assert summary.failures == 2 * 4


def test_the_norms_of_what_was_let_in_are_on_record(runs: Path, data: Path) -> None:
    play(runs, data, "flipped", **SHORT)
    for line in (runs / "rounds.jsonl").read_text().splitlines():
        norms = json.loads(line)["norms"]
        assert len(norms) == 10
        assert all(0 < norm < 10 for norm in norms.values())


# -- what it does to accuracy ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def accuracy(data: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(attack, defence) -> accuracy of the global adapter in per cent; every run once."""

    @cache
    def run_once(attack: str | None, defence: str) -> float:
        summary = play(tmp_path_factory.mktemp("run") / "run", data, attack, federation__robust=defence)
        found = summary.statistics("shared", "accuracy")
        assert found is not None
        return 100 * found["mean"]

    return run_once


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["NaN", "huge", "replayed", "wrong rank", "wrong schema"])
def test_what_is_refused_costs_no_accuracy(attack: str, accuracy) -> None:  # type: ignore[no-untyped-def]
    assert accuracy(None, "none") >= 98  # 25 by chance
    assert accuracy(attack, "none") >= accuracy(None, "none") - 2


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["farthest", "heavy"])
def test_without_a_robust_mean_an_attack_spoils_the_model(attack: str, accuracy) -> None:  # type: ignore[no-untyped-def]
    """Otherwise the next test would say nothing."""
    assert accuracy(attack, "none") < 60


@pytest.mark.slow
@pytest.mark.parametrize("attack", ADMITTED)
@pytest.mark.parametrize("defence", ["clip", "median", "trimmed"])
def test_with_a_robust_mean_it_does_not(attack: str, defence: str, accuracy) -> None:  # type: ignore[no-untyped-def]
    assert accuracy(attack, defence) >= accuracy(None, "none") - 2
