"""Clients that lie: what no client can have to say is refused, and the rest cannot take the others with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters import resealed
from attacks import ADMITTED, CLAIMS, LEARNS, LIES, REFUSED, VILLAINS, Attack, attacked, colours
from capfl.config import load_config
from capfl.config.schema import MethodConfig
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.methods import METHODS, build
from capfl.packing import pack
from capfl.report.summary import Summary
from capfl.types import ClientId, Failure
from parts import Federation


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many posteriors are fitted, and none has to be fitted well."""
    monkeypatch.setattr("capfl.methods.posterior.FIT_STEPS", 2)


class Attacked(Federation):
    """Client b attacks, each round in another way; or is not there at all."""

    def __init__(self, method: str, codec: str, attacks: Sequence[Attack | None]) -> None:
        super().__init__(build(MethodConfig(name=method)), codec)
        self.attacks, self.first = list(attacks), b""

    def answer(self, client: ClientId, reply: bytes) -> bytes | Failure:
        if client != "b":
            return reply
        self.first = self.first or reply
        attack = self.attacks[self.state.round]
        return attack(reply, self.agreement, self.first) if attack else Failure("b", "power", "gone")


# -- without a model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_is_refused_and_leaves_no_trace(method: str) -> None:
    attacks = CLAIMS if method == "local" else REFUSED  # it sends no change
    codec = "fp32" if method in ("fedit", "fedex-lora", "flexlora") else "default"
    played, absent = Attacked(method, codec, [*attacks.values()]), Attacked(method, codec, [None] * len(attacks))
    for name in attacks:
        (record,) = played.play(1, on_failure="skip")
        assert [failure.client for failure in record.failures] == ["b"], f"{name} was let in"
        assert record.clients == ("a", "c")
        absent.play(1, on_failure="skip")
        assert pack(played.state) == pack(absent.state), f"{name} left a trace"


@pytest.mark.parametrize("codec", ["fp32", "default"])
def test_lies_about_data_and_ranks_are_refused(codec: str) -> None:
    played = Attacked("ca-pfl", codec, [*LIES.values()])
    for name in LIES:
        played.memory.pop("b", None)  # it describes its data as if it had never been asked
        (record,) = played.play(1, on_failure="skip")
        (failure,) = record.failures
        assert failure.client == "b", f"{name} was let in"
        assert any(word in failure.reason for word in ("Description", "description", "Importance", "posterior"))


@pytest.mark.parametrize(("method", "codec"), [("ca-pfl", "default"), ("fedex-lora", "bf16")])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
def test_whatever_is_in_a_message_the_server_goes_on(method: str, codec: str, damage: list[tuple[int, int]]) -> None:
    def damaged(reply: bytes, *_: object) -> bytes:
        for at, value in damage:
            reply = resealed(reply, 20 + at % (len(reply) - 24), bytes([value]))
        return reply

    played = Attacked(method, codec, [damaged, lambda reply, *_: reply])
    played.play(2, on_failure="skip")
    for group in played.state.groups.values():
        assert all(bool(t.isfinite().all()) for t in group.adapter.values())


def test_one_that_claims_a_million_items_counts_for_ten_times_the_median() -> None:
    """A run without ``federation.max_items``. The first five have 10 to 50 items, so 30 is the median or near it."""

    class Claims(Federation):
        def answer(self, client: ClientId, reply: bytes) -> bytes:
            return ADMITTED["heavy"](reply, self.agreement, reply) if client == "f" else reply

    played = Claims(build(MethodConfig(name="fedit")), clients=tuple("abcdef")).with_limits(max_items=None)
    before = played.state.everybody.adapter
    played.play(1)
    honest = {client: 10.0 * (ord(client) - 96) for client in "abcde"}
    for name, t in played.state.everybody.adapter.items():
        found = (t - before[name]).double()
        means = []
        for weight in (10 * 30.0, 10 * 40.0):
            total = sum(w * played.sent[c][0][name].double() for c, w in honest.items())
            means.append((total - weight * played.sent["f"][0][name].double()) / (sum(honest.values()) + weight))
        assert any(torch.allclose(found, mean, atol=1e-6) for mean in means)


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
    assert accuracy(attack, defence) >= accuracy(None, "none") - 3
