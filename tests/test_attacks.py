"""Clients that lie: what no client can have to say is refused, and the rest cannot take the others with it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from attacks import ADMITTED, CLAIMS, LEARNS, REFUSED, VILLAINS, Attack, attacked, colours, heavy
from capfl import adapter as algebra
from capfl.config import load_config
from capfl.config.schema import MethodConfig
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.methods import METHODS, build
from capfl.methods.combine import WeightedMean
from capfl.packing import pack
from capfl.report.summary import Summary
from fake import LIMITS, n_train
from parts import Federation, folded

# -- without a model -----------------------------------------------------------------------------------------------


# The other methods share their parts with these three.
@pytest.mark.parametrize(
    "method",
    [name if name in ("ca-pfl", "fedit", "rolora") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS],
)
def test_what_cannot_be_is_refused_and_leaves_no_trace(method: str) -> None:
    """Client b attacks each round but the first in another way; beside it, one whose reply does not come."""
    codec = "fp32" if method in ("fedit", "fedex-lora", "flexlora") else "default"
    row = MethodConfig(name=method, turns=1 if method == "ca-pfl" else None)  # attacks know one number of a version
    played, absent = (Federation(build(row), codec) for _ in range(2))
    for federation in (played, absent):  # clients introduce themselves
        federation.rounds(1)
    first: list[bytes] = []
    for name, attack in (CLAIMS if method == "local" else REFUSED).items():  # local sends no change

        def forge(reply: bytes, attack: Attack = attack) -> bytes:
            first.append(reply)
            return attack(reply, played.agreement, first[0])

        played.forged["b"] = forge
        absent.lost.add("b")
        record = played.rounds(1)
        assert [failure.client for failure in record.failures] == ["b"], f"{name} was let in"
        assert record.clients == absent.rounds(1).clients == ("a", "c")
        assert pack(played.state) == pack(absent.state), f"{name} left a trace"


def test_one_that_claims_a_million_items_counts_for_ten_times_the_median() -> None:
    """A run without ``federation.max_items``. The others have 10 to 50 items."""
    played = Federation(build(MethodConfig(name="fedit")), clients="abcdef", limits=replace(LIMITS, max_items=None))
    played.forged["f"] = lambda reply: heavy(reply, played.agreement, reply)
    played.rounds(1)
    parts = [(played.changes(client)[0], float(n_train(client))) for client in "abcde"]
    expected = folded(WeightedMean(), [*parts, (algebra.scaled(played.changes("f")[0], -1), 300.0)])
    for name, t in played.state.everybody.adapter.items():
        torch.testing.assert_close(t, expected[name])


# -- with one ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colours(tmp_path_factory.mktemp("data") / "colours.jsonl")


def play(out: Path, data: Path, attack: str | None, **changes: object) -> Summary:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(None, {**LEARNS, **given, "data.sets": [str(data)], "out": str(out)})
    engine = attacked(serial, (ADMITTED | REFUSED)[attack], VILLAINS) if attack else serial
    return run(config, engine)[0]


@pytest.mark.parametrize("attack", ["huge", "flipped"])
def test_a_run_goes_on_without_those_that_are_refused_and_says_how_long_changes_were(
    attack: str, runs: Path, data: Path
) -> None:
    summary = play(runs, data, attack, federation__rounds=2, train__steps=1, train__batch_size=4)
    refused = [] if attack == "flipped" else list(VILLAINS)
    assert summary.failures == 2 * len(refused)
    for record in map(json.loads, (runs / "rounds.jsonl").read_text().splitlines()):
        assert [failure["client"] for failure in record["failures"]] == refused
        assert {failure["stage"] for failure in record["failures"]} <= {"decode"}
        assert len(record["clients"]) == len(record["norms"]) == 10 - len(refused)
        assert all(0 < norm < 10 for norm in record["norms"].values())
        up = {entry["client"]: entry for entry in record["ledger"] if entry["direction"] == "up"}
        assert all(up[client]["parts"] == {"unreadable": up[client]["bytes"]} for client in refused)


@pytest.fixture(scope="module")
def accuracy(data: Path, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(attack, defence) -> accuracy of the server's adapter in per cent; every run once."""

    @cache
    def run_once(attack: str | None, defence: str) -> float:
        out = tmp_path_factory.mktemp("run") / "run"
        found = play(out, data, attack, federation__robust=defence).statistics("shared", "accuracy")
        assert found is not None
        return 100 * found["mean"]

    return run_once


@pytest.mark.slow
def test_without_a_robust_mean_an_attack_spoils_the_model(accuracy) -> None:  # type: ignore[no-untyped-def]
    """Otherwise the next test would say nothing."""
    assert accuracy(None, "none") >= 98  # 25 by chance
    assert accuracy("farthest", "none") < 60


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["farthest", "heavy"])
@pytest.mark.parametrize("defence", ["clip", "median", "trimmed"])
def test_with_a_robust_mean_it_does_not(attack: str, defence: str, accuracy) -> None:  # type: ignore[no-untyped-def]
    assert accuracy(attack, defence) >= accuracy(None, "none") - 10
