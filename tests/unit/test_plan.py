"""A plan against the run that it foretells."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig

from capfl import adapter as algebra
from capfl.config import load_config
from capfl.config.schema import CodecConfig, FederationConfig, LoraConfig, MethodConfig, ModelConfig
from capfl.errors import ConfigError, DataError, ModelError
from capfl.methods import build
from capfl.model import tiny
from capfl.model.base import skeleton
from capfl.model.layers import adapter_shapes
from capfl.plan import Plan, make_plan
from capfl.plan.table import duration, plan_tables
from capfl.plan.time import Calibration
from capfl.plan.traffic import measure, totals
from capfl.roles.agreement import Agreement
from support import tiny_config, tiny_run

# five steps, because after two Adam has moved all elements of A by the same amount, which cancels between clients
ALIKE: dict[str, object] = {"train__steps": 5, "evaluation__every": 0, "evaluation__personal": False}
ONE_GROUP: dict[str, object] = {"data__sites": 2, "partition__kind": "iid", "partition__clients": 4}

QV: dict[str, object] = {"lora.layers": "all", "lora.targets": ["q_proj", "v_proj"]}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plan(**changes: object) -> Plan:
    return make_plan(tiny_config("unused", **changes), calibration=False)


# -- bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apart", "changes"),
    [
        pytest.param(0.001, {"codec__values": "bf16", "federation__fraction": 0.5, "data__sites": 4,
                             "federation__rounds": 7}, marks=pytest.mark.slow),
        pytest.param(0.001, {"method__name": "fedex-lora", "federation__fraction": 0.5, "data__sites": 4,
                             "federation__rounds": 6}, marks=pytest.mark.slow),
        pytest.param(0.01, {"method__name": "rolora", "codec__values": "bf16", "federation__rounds": 7},
                     marks=pytest.mark.slow),  # A and B in alternate rounds
        pytest.param(0.05, {"method__name": "ca-pfl", "codec__values": "ternary", **ONE_GROUP}, marks=pytest.mark.slow),
        (0, {"method__turns": 3, "codec__values": "bf16", "federation__fraction": 0.75, "data__sites": 4,
             "federation__rounds": 6}),  # two in a turn, one, or none of one's own
        pytest.param(0, {"method__turns": 9, "data__sites": 4, "federation__rounds": 3},  # the whole adapter every turn
                     marks=pytest.mark.slow),
        pytest.param(0.01, {"method__name": "ca-pfl", "method__turns": 3, "codec__values": "bf16",
                            "federation__rounds": 2, **ONE_GROUP}, marks=pytest.mark.slow),
        (0.03, {"privacy__secure_aggregation": "malicious-server", "codec__values": "ternary", "data__sites": 4,
                "federation__fraction": 0.75, "federation__rounds": 3, "privacy__clip": 1.0,
                "privacy__noise_multiplier": 1.0}),  # what comes down has noise, of another length each time
        (0.01, {"method__name": "ca-pfl", "method__turns": 1, "codec__values": "ternary", "federation__rounds": 2,
                "method__peers": dict.fromkeys(("airline", "bank", "council"), "a"), "data__sites": 5,
                "privacy__secure_aggregation": "honest-server"}),
        pytest.param(0.05, {"privacy__secure_aggregation": "honest-server", "codec__values": "2bit", "data__sites": 4,
                            "codec__density": 0.5, "federation__rounds": 3}, marks=pytest.mark.slow),
        pytest.param(0.02, {"codec__values": "8bit", "codec__density": 0.15, "codec__mask": "top",
                            "lora__layers": "all"}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value.get("method__name", "fedit") if isinstance(value, dict) else None,
)  # fmt: skip
def test_totals_are_those_of_the_run(tmp_path: Path, apart: float, changes: dict[str, object]) -> None:
    made, summary = plan(**ALIKE, **changes), tiny_run(tmp_path / "run", **ALIKE, **changes)
    up = sum(e.bytes for e in summary.ledger if e.direction == "up" and e.round <= summary.rounds)
    delivery = sum(e.bytes for e in summary.ledger if e.direction == "down" and e.round > summary.rounds)
    assert made.totals["bytes_up"] == pytest.approx(up, rel=apart)
    assert made.totals["bytes_down"] == pytest.approx(summary.total_bytes("down"), rel=apart)
    assert made.totals["final_delivery"] == pytest.approx(delivery, rel=2 * apart)
    assert made.totals["bytes"] == made.totals["bytes_up"] + made.totals["bytes_down"]


def test_dense_float32_costs_what_it_says_to_the_byte(tmp_path: Path) -> None:
    made, summary = plan(**ALIKE), tiny_run(tmp_path / "run", **ALIKE)
    up, down = (
        [fmean(e.bytes for e in summary.ledger if (e.direction, e.round) == (way, round)) for round in (1, 2, 3)]
        for way in ("up", "down")
    )
    assert up[:-1] == pytest.approx([made.bytes_up] * 2, abs=0.5)  # the last one is the final evaluation
    assert down[0] < 100
    assert down[1:] == pytest.approx([made.bytes_down] * 2, abs=0.5)
    assert made.dense_fp32_round_trip == 2 * made.parts["up"]["values"] == 8 * made.parameters


def test_all_updates_of_a_round_go_down_where_they_are_relayed() -> None:
    few, many = (plan(method__name="fedex-lora", data__sites=sites) for sites in (2, 8))
    assert few.parts["up"]["values"] == many.parts["up"]["values"]
    assert many.parts["down"]["values"] == 4 * few.parts["down"]["values"] == 8 * few.parts["up"]["values"]
    assert many.memory["patch"] > 0 == plan().memory["patch"]


def test_descriptions_are_paid_for_once_up_and_down() -> None:
    one, two, three = (
        plan(method__name="ca-pfl", method__turns=1, federation__rounds=n, **ONE_GROUP).totals for n in (1, 2, 3)
    )
    up, down = (
        [own[f"bytes_{way}"] - own["final_delivery"] * (way == "down") for own in (one, two, three)]
        for way in ("up", "down")
    )
    assert up[2] - up[1] == pytest.approx(up[1] - up[0], rel=0.01)
    assert 2 * up[0] - up[1] == pytest.approx(4 * (54 + 274), abs=100)  # a header, and 4 x 32 numbers in bfloat16
    whole = down[1] - down[0]
    assert down[2] - down[1] == pytest.approx(whole, rel=0.01)
    assert down[0] == pytest.approx(
        4 * (54 + 54 + 549), abs=40
    )  # it is asked, and told 256 features in its first round
    assert whole > 4 * 7168


def test_in_turn_every_client_hears_all_others_and_nothing_of_its_own() -> None:
    sites: dict[str, object] = {"data__sites": 4, "codec__values": "ternary"}
    together, in_turn = plan(**sites), plan(**sites, method__turns=4)
    assert (together.turns, in_turn.turns, plan(**sites, method__turns=9).turns) == (1, 4, 4)
    assert in_turn.parts["up"] == together.parts["up"]
    assert in_turn.parts["down"]["values"] == pytest.approx(3 * together.parts["down"]["values"], rel=0.02)


def test_clients_of_unequal_rank_are_counted_each_for_itself() -> None:
    equal, unequal = (plan(method__name="flexlora", data__sites=4, method__rank_shares=s) for s in ([1.0], [1.0, 0.5]))
    assert unequal.parts["up"]["values"] == 0.75 * equal.parts["up"]["values"]  # the mean over clients
    assert unequal.totals["bytes_up"] < 0.8 * equal.totals["bytes_up"]


def test_local_sends_nothing_but_headers() -> None:
    made = plan(method__name="local")
    assert {part for of in made.parts.values() for part, n in of.items() if n} == {"header"}
    assert made.bytes_up < 100


def test_llama_is_planned_without_weights_or_network() -> None:
    """One bit for each of a fifth of the values; what stands beside them is less than three percent."""
    settings = {"model.path": "meta-llama/Llama-3.2-3B", "runtime.threads": 1, **QV, "lora.layers": "top:4"}
    made = make_plan(load_config(None, settings))
    assert made.parameters == 4 * 2_293_760 // 28
    assert made.bytes_up == pytest.approx(made.parameters / 5 / 8, rel=0.03)
    assert made.seconds is None
    assert str(made.seconds_reason).startswith("the weights of meta-llama/Llama-3.2-3B are not here")


# -- clients ---------------------------------------------------------------------------------------------


def test_where_the_number_of_clients_comes_from(tmp_path: Path) -> None:
    assert (plan(data__sites=3).clients, plan(data__sites=3).clients_from) == (3, "the data")
    gone = {"data__sets": ["boolq"], "data__dir": str(tmp_path), "partition__kind": "iid"}
    given = plan(**gone, partition__clients=7, federation__fraction=0.5)
    assert (given.clients, given.clients_per_round, given.clients_from) == (7, 4, "partition.clients")
    assumed = make_plan(tiny_config("unused", **gone))
    assert (assumed.clients, assumed.clients_from) == (10, "the default of 10, because the data are not here")
    assert assumed.seconds is None
    assert str(assumed.seconds_reason).startswith("the data are not here: ")
    assert "boolq/train.jsonl: no such file" in str(assumed.seconds_reason)


def test_mistakes_are_those_of_a_run() -> None:
    with pytest.raises(ConfigError, match="no data set is called 'helpdsk'"):
        plan(data__sets=["helpdsk"])
    with pytest.raises(ConfigError, match="no linear layer 'query'"):
        plan(lora__targets=["query"])
    with pytest.raises(DataError, match="61 clients cannot share 60 items"):
        plan(partition__kind="iid", partition__clients=61)
    with pytest.raises(ModelError, match="cannot read the shapes of 'no/model'"):
        plan(model__path="no/model")
    with pytest.raises(
        ConfigError, match=r"data.max_length: rows may have 2049 tokens, and tiny has positions for 2048"
    ):
        plan(data__max_length=2049)


def test_a_plan_needs_no_weights_to_know_what_can_be_a_base(tmp_path: Path) -> None:
    """And says what of it is not adapted."""
    AutoConfig.for_model("bert").save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="is an encoder"):
        plan(model__path=str(tmp_path / "encoder"))
    sizes = {"vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    AutoConfig.for_model("lfm2", **sizes, layer_types=kinds).save_pretrained(tmp_path / "hybrid")
    made = plan(model__path=str(tmp_path / "hybrid"))
    assert made.remarks == [
        f"lora.targets: layer 2 has no linear layer '{t}_proj', and is left as before" for t in "qv"
    ]
    assert made.parameters == 8 * (32 + 32) + 8 * (32 + 16)  # of one layer
    console = Console(width=200)
    with console.capture() as shown:
        console.print(plan_tables(made))
    assert made.remarks[0] in shown.get()


# -- a large adapter is measured by a few of its modules ------------------------------------------------


def of_modules(method: str, **codec: object) -> Agreement:
    """Four modules of 8 ranks in each of four layers; 70,000 elements."""
    shapes = {f"m.{i}.{j}": d for i in range(4) for j, d in enumerate([(256, 256), (256, 128), (192, 384), (384, 320)])}
    initial = {
        name: torch.zeros(shape)
        for module, (d_in, d_out) in shapes.items()
        for name, shape in ((f"{module}.A", (8, d_in)), (f"{module}.B", (d_out, 8)))
    }
    settings: dict[str, object] = {"rank_shares": (1.0, 0.5)} if method == "flexlora" else {}
    return Agreement(build(MethodConfig(name=method, **settings)), CodecConfig(**codec), initial)  # type: ignore[arg-type]


def check_that_few_stand_for_all(agreement: Agreement, apart: float, patch: pytest.MonkeyPatch) -> None:
    clients, federation = ["a", "bb", "c", "d"], FederationConfig(rounds=6, fraction=0.75)
    patch.setattr("capfl.plan.scaled.LARGE", 10**9)
    exact = measure(agreement, clients)
    patch.setattr("capfl.plan.scaled.LARGE", algebra.size(agreement.initial) // 3)
    found = measure(agreement, clients)
    for key, bytes in totals(exact, federation, 0).items():
        assert totals(found, federation, 0)[key] == pytest.approx(bytes, rel=apart), key
    assert found.whole.sum() == pytest.approx(exact.whole.sum(), rel=0.001)
    assert (found.limit, found.group_of) == (exact.limit, exact.group_of)


@pytest.mark.parametrize(
    ("method", "codec"),
    [
        pytest.param("ca-pfl", {}, marks=pytest.mark.slow),
        ("fedit", {"density": 0.1}),  # chance decides how many elements are sent
        ("fedit", {"values": "4bit", "density": 0.15, "mask": "top"}),
        ("rolora", {"values": "bf16", "density": 0.3}),
        ("ffa-lora", {"values": "8bit", "down_values": "fp32"}),
        ("flexlora", {}),
        ("fedex-lora", {"values": "bf16"}),
        ("local", {}),
    ],
)
def test_a_few_modules_stand_for_all(method: str, codec: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 3 %, where messages are so short that chance has a say in what scales and records take."""
    check_that_few_stand_for_all(of_modules(method, **codec), 0.03, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "codec", "apart"),
    [
        ("ca-pfl", {}, 0.01),
        ("fedit", {"density": 0.1}, 0.01),
        ("fedit", {"values": "8bit", "density": 0.1, "mask": "top"}, 0.02),  # levels follow what is largest of a tensor
    ],
)
def test_a_few_modules_stand_for_all_of_smollm2(
    method: str, codec: dict[str, object], apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = skeleton(ModelConfig(path="smollm2"))
    shapes = adapter_shapes(module, LoraConfig(layers="top:6", targets=("all-linear",)))
    initial = {name: torch.zeros(1).expand(*shape) for name, shape in shapes.items()}
    check_that_few_stand_for_all(replace(of_modules(method, **codec), initial=initial), apart, monkeypatch)


# -- time ------------------------------------------------------------------------------------------------


def test_time_is_measured_where_model_and_data_are_here(tmp_path: Path) -> None:
    settings = {"evaluation__references": ["local"], "train__steps": None, "train__epochs": 2}
    made, longer = (make_plan(tiny_config("unused", **settings, federation__rounds=n)) for n in (2, 200))
    assert made.seconds is not None
    assert longer.seconds is not None
    assert set(made.seconds) == {"loading", "training", "hidden states", "scoring"}
    assert all(0 <= n < 60 for n in made.seconds.values())
    assert longer.seconds["training"] > 10 * made.seconds["training"] > 0
    assert made.seconds_reason is None
    assert made.round_seconds is not None
    assert 0 < made.round_seconds < made.seconds["training"]
    assert made.memory_row_tokens < 256  # of the rows that there are
    assert plan().seconds_reason == "--no-calibrate was given"
    assert plan().round_seconds is None
    tiny.model(layers=2).config.save_pretrained(tmp_path)  # a folder without weights
    assert f"the weights of {tmp_path} are not here" in str(
        make_plan(tiny_config("unused", model__path=str(tmp_path))).seconds_reason
    )


def test_a_round_takes_as_many_visits_as_it_has_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Calibration({"loading": 1.0, "training": 60.0}, visit=2.5, length=30, answers=1)
    monkeypatch.setattr("capfl.plan.calibrate", lambda *given: measured)
    sites: dict[str, object] = {"data__sites": 4, "federation__fraction": 0.75}
    made = [make_plan(tiny_config("unused", **sites, method__turns=turns)) for turns in (1, 2, 30)]
    assert [own.round_seconds for own in made] == [2.5, 5.0, 7.5]  # three clients a round
    console = Console(width=90)
    with console.capture() as capture:
        console.print(plan_tables(made[1]))
    assert "2 turns of 2.5 s" in " ".join(capture.get().split())


# -- what is said ----------------------------------------------------------------------------------------


def test_table_and_json_say_all_of_it() -> None:
    made = plan(codec__values="bf16", codec__density=0.1, federation__fraction=0.5, data__sites=4, federation__rounds=8)
    said = json.loads(json.dumps(made.to_json()))
    agreed = "bytes_up bytes_down bytes_round_trip dense_fp32_round_trip parameters clients rounds totals memory parts"
    assert set(agreed.split()) <= said.keys()
    assert said["bytes_round_trip"] == said["bytes_up"] + said["bytes_down"] == made.bytes_round_trip
    of_rows = [n for _, n in sorted(made.activations.items())]
    assert list(made.activations) == [256, 1024, 4096]
    assert of_rows[0] == made.memory["activations"]  # data.max_length is 256
    assert of_rows[2] > 3.9 * of_rows[1] > 15 * of_rows[0]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(plan_tables(made))
    words = " ".join(capture.get().split())
    for part in ("header", "values", "in all", "dense fp32", "bytes up", "peak memory", f" {made.bytes_up:,} "):
        assert part in words, part
    assert "2 of 4 clients (from the data) in each of 8 rounds" in words
    assert "--no-calibrate was given" in words
    assert "scales" not in words  # bf16 has none


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (59, "59 s"), (61, "1 min 1 s"), (3600 * 5 + 61, "5 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
