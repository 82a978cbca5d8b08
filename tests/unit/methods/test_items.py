"""Privacy of a client's items, from the config to the files of a run: what is drawn, counted, said, and refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

import capfl.federation as federation
from capfl.checkpoint import RunFolder
from capfl.config import load_config
from capfl.config.privacy import PrivacyConfig
from capfl.config.schema import MethodConfig, TrainConfig
from capfl.data import deal
from capfl.errors import ConfigError
from capfl.maths.privacy import ORDERS, epsilon
from capfl.methods import METHODS, build
from capfl.methods.items import epsilon_of_items, refuse_unprotected, trainings
from capfl.methods.take_home import AfterSteps, NearServer, Own
from capfl.model.hidden import HiddenCache
from capfl.model.items import Protection
from capfl.model.learner import Job
from capfl.model.lora import AdaptedModel
from capfl.report.findings import findings
from capfl.roles import client as side
from capfl.rounds import asked_to_train
from capfl.types import Failure, RoundRecord, ServerState, Trained
from parts import row
from support import tiny_run

ON = PrivacyConfig(protects="items", clip=1.0, noise_multiplier=0.8)
SETTINGS: dict[str, object] = {
    "privacy__protects": "items", "privacy__clip": 1.0, "privacy__noise_multiplier": 2.0, "data__sites": 3,
}  # fmt: skip


# -- epsilon -------------------------------------------------------------------------------------------------------


def composed(noise: float, steps: int, share: float) -> dp_accounting.DpEvent:
    sampled = dp_accounting.PoissonSampledDpEvent(share, dp_accounting.GaussianDpEvent(noise))
    return dp_accounting.SelfComposedDpEvent(sampled, steps)


def counted(noise: float, steps: int, share: float) -> float:
    """By dp-accounting itself, at delta 1e-5."""
    accountant = RdpAccountant(ORDERS, neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(composed(noise, steps, share))
    return float(accountant.get_epsilon(1e-5))


def test_epsilon_of_sampled_steps_is_an_upper_bound_and_a_near_one() -> None:
    """Of what privacy loss distributions give, which are another way to count."""
    found, other = epsilon(1.0, 54, 1e-5, 0.1), PLDAccountant(value_discretization_interval=1e-3)
    other.compose(composed(1.0, 54, 0.1))
    assert other.get_epsilon(1e-5) <= found < 1.25 * other.get_epsilon(1e-5)
    assert found == counted(1.0, 54, 0.1)
    assert epsilon(1.0, 54, 1e-5) > 5 * found  # where it is known who is in a batch


def test_epsilon_is_that_of_the_client_that_has_least_to_hide_among() -> None:
    train, sizes = TrainConfig(batch_size=8, epochs=2), {"a": 40, "b": 300, "c": 5}
    noise = ON.of_items
    ours = {"a": epsilon(0.8, 4 * 2 * 5, 1e-5, 0.2), "b": epsilon(0.8, 2 * 38, 1e-5, 8 / 300)}
    assert ours["a"] > ours["b"]
    assert epsilon_of_items(noise, train, {"a": 4, "b": 1}, sizes) == ours["a"]
    assert epsilon_of_items(noise, train, {"b": 1}, sizes) == ours["b"]
    assert epsilon_of_items(noise, train, {"c": 3}, sizes) == epsilon(0.8, 3 * 2, 1e-5)  # all five are in every batch
    assert epsilon_of_items(noise, train, {"a": 4, "d": 1}, sizes) is None
    assert epsilon_of_items(noise, train, {}, sizes) == 0


def test_every_training_counts_and_every_try_that_failed() -> None:
    assert [trainings(row(takes_home=home), 3, 2) for home in (AfterSteps(), AfterSteps(0.5), NearServer())] == [
        5,
        5,
        6,
    ]
    assert trainings(replace(build(MethodConfig(name="local")), takes_home=Own()), 3, 2) == 3
    failed = RoundRecord(1, ("a",), {}, {}, (Failure("b", "train", "gone"), Failure("a", "decode", "torn")), (), 0.0)
    assert asked_to_train(ServerState(2, {}, visits={"a": 2}), [failed]) == {"a": 3, "b": 1}


# -- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_counts_all_steps_of_its_own_and_of_the_reference(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no training loss is said."""
    taken, said = list[Job](), list[float]()
    real = side.encode_update
    monkeypatch.setattr(side, "encode_update", lambda update, *rest: said.append(update.loss) or real(update, *rest))
    steps = federation.local_steps

    def counting(model: AdaptedModel, cache: HiddenCache, job: Job, config: TrainConfig) -> Trained:
        taken.append(job)
        return steps(model, cache, job, config)

    monkeypatch.setattr(federation, "local_steps", counting)
    summary = tiny_run(runs, **SETTINGS, evaluation__references=["local"])
    n = summary.rows[0].n_train
    assert {row.n_train for row in summary.rows} == {n}
    records = RunFolder(runs).rounds()
    assert [r.epsilon for r in records] == [epsilon(2.0, 2 * r.round, 1e-5, 4 / n) for r in records]
    assert len(taken) == 3 * 2 * (2 + 1)
    assert {job.protection for job in taken} == {Protection(1.0, 2.0, 4.0)}
    assert {len(batch) for job in taken for batch in job.plan} > {4}  # by chance
    assert summary.epsilon == counted(2.0, 2 * 2 * (2 + 1), 4 / n)
    assert (summary.delta, summary.protects) == (1e-5, "items")
    assert set(said) == {0.0}
    assert len(said) == 3 * 2 * 2
    assert all(r.losses == {} and r.steps == dict.fromkeys(r.clients, 2) for r in records)
    items, splits = deal(*(getattr(load_config(runs / "config.toml"), key) for key in ("data", "partition", "seed")))
    for own in summary.rows:  # and not of the training items, which would be without noise
        answers = Counter(items[i].answer for i in splits[own.id].test)
        assert own.majority == pytest.approx(answers.most_common()[0][1] / own.n_test)
    assert any("for each of its training items" in line for line in findings(summary))
    assert json.loads((runs / "summary.json").read_text())["protects"] == "items"


def test_with_groups_that_are_given_and_sums_alone(runs: Path) -> None:
    """Posteriors are learnt from adapters and gradients that have noise already."""
    peers = dict.fromkeys(("airline", "bank", "hospital"), "a")
    summary = tiny_run(
        runs, **SETTINGS, method__name="ca-pfl", method__peers=peers, method__turns=1, codec__values="ternary",
        privacy__secure_aggregation="honest-server",
    )  # fmt: skip
    assert summary.epsilon
    assert all(r.losses == {} and len(r.steps) == 3 for r in RunFolder(runs).rounds())


# -- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_it_can_protect_and_those_that_it_cannot(method: str) -> None:
    refused = {
        "ca-pfl": r"^KEY: clients of ca-pfl say what their data are like.*method.peers = .*use fedit",
        "centralised": r"^KEY: centralised puts all data in one place.*leave one of the two out",
    }
    refuse_unprotected(build(MethodConfig(name=method)), PrivacyConfig(clip=1.0, noise_multiplier=1.0), "KEY")
    if method not in refused:
        refuse_unprotected(build(MethodConfig(name=method)), ON, "KEY")
        return
    with pytest.raises(ConfigError, match=refused[method]):
        refuse_unprotected(build(MethodConfig(name=method)), ON, "KEY")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"privacy.clip": None, "privacy.noise_multiplier": None}, "needs noise; give clip and noise_multiplier"),
        ({"runtime.clients_per_pass": 2}, "runtime.clients_per_pass: .*set it to 1"),
        ({"runtime.compile": True}, "runtime.compile: .*leave it out"),
        ({"model.quantization": "8bit"}, "model.quantization: .*set it to 4bit"),
    ],
)
def test_settings_that_leave_no_gradient_to_each_item(settings: dict[str, object], reason: str) -> None:
    on = {"privacy.protects": "items", "privacy.clip": 1.0, "privacy.noise_multiplier": 1.0}
    load_config(None, on)
    with pytest.raises(ConfigError, match=reason):
        load_config(None, on | settings)


def test_what_a_run_refuses(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"^evaluation\.references: centralised puts all data"):
        tiny_run(runs, **SETTINGS, evaluation__references=["centralised"])
    with pytest.raises(ConfigError, match=r"^privacy\.delta: with 0\.1 one of a client's \d+ training items"):
        tiny_run(runs, **SETTINGS, privacy__delta=0.1)
