"""A plan against the run that it foretells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from capfl.config import Config, load_config
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ConfigError, DataError, ModelError
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.lora import AdaptedModel
from capfl.model.shapes import adapter_shapes, skeleton
from capfl.plan import make_plan
from capfl.plan.advice import ABOVE, advise, changed
from capfl.plan.bytes import SETTLING
from capfl.plan.memory import estimate
from capfl.report.plan import Plan, duration, plan_tables
from support import TINY, tiny_config, tiny_run

# five steps, because after two Adam has moved all elements of A by the same amount, which cancels between clients
ALIKE: dict[str, object] = {
    "method__name": "fedit", "train__steps": 5, "evaluation__every": 0, "evaluation__personal": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def plan(**changes: object) -> Plan:
    return make_plan(tiny_config("unused", **({"method__name": "fedit"} | changes)), calibration=False)


# -- bytes -----------------------------------------------------------------------------------------------


def test_dense_float32_costs_what_the_run_says_to_the_byte(tmp_path: Path) -> None:
    made = plan(**ALIKE, federation__rounds=3)
    summary = tiny_run(tmp_path / "run", **ALIKE, federation__rounds=3)
    of_longest = [e for e in summary.ledger if e.client == "hospital"]
    *updates, _ = [e.bytes for e in of_longest if e.direction == "up"]
    assert updates == [made.bytes_up] * 3
    first, *rest = [e.bytes for e in of_longest if e.direction == "down"]
    assert first == sum(made.first_down.values()) < 100
    assert rest == [made.bytes_down] * 3  # the last one is the final evaluation
    assert (made.total_up, made.total_down) == (summary.total_bytes("up"), summary.total_bytes("down"))
    assert made.delivery == sum(e.bytes for e in summary.ledger if e.round == 4 and e.direction == "down")
    # nothing is sent but float32: both comparisons are with the thing itself
    assert made.dense_fp32_round_trip == made.bytes_round_trip
    said = made.to_json()
    assert said["bytes_up"] == sum(said["parts"]["up"].values())
    assert said["totals"]["bytes"] == made.total_up + made.total_down


@pytest.mark.parametrize(
    "changes",
    [
        {"method__name": "local", "codec__values": "ternary", "codec__density": 0.1},
        {"method__name": "ffa-lora", "federation__fraction": 0.5, "data__sites": 4, "federation__rounds": SETTLING + 2},
        {"method__name": "fedex-lora", "data__sites": 4, "federation__rounds": 3},
        {"method__name": "flexlora", "data__sites": 3, "method__rank_shares": [1.0, 0.5]},
    ],
)
def test_totals_follow_who_is_drawn_and_what_the_method_sends(tmp_path: Path, changes: dict[str, object]) -> None:
    made, summary = plan(**(ALIKE | changes)), tiny_run(tmp_path / "run", **(ALIKE | changes))
    assert (made.total_up, made.total_down) == (summary.total_bytes("up"), summary.total_bytes("down"))


def test_clients_that_miss_rounds_are_charged_for_catching_up(tmp_path: Path) -> None:
    some = ALIKE | {"codec__values": "bf16", "data__sites": 4, "federation__rounds": SETTLING + 2}
    made = plan(**some, federation__fraction=0.5)
    summary = tiny_run(tmp_path / "run", **some, federation__fraction=0.5)
    assert made.total_up == pytest.approx(summary.total_bytes("up"), rel=0.002)
    assert made.total_down == pytest.approx(summary.total_bytes("down"), rel=0.005)
    messages = [e for e in summary.ledger if e.direction == "down" and e.round <= summary.rounds]
    caught_up = sum(e.parts["catch-up"] for e in messages) / len(messages)
    assert 0 < made.catch_up < caught_up  # what is sent later in one piece is not sent twice
    assert plan(**some).catch_up == 0


@pytest.mark.parametrize("method", ["fedit", "ca-pfl"])
def test_a_sparse_run_costs_about_what_is_foretold(tmp_path: Path, method: str) -> None:
    sparse = ALIKE | {"method__name": method, "codec__values": "4bit", "codec__density": 0.2, "lora__layers": "all"}
    made, summary = plan(**sparse), tiny_run(tmp_path / "run", **sparse)
    assert made.total_up == pytest.approx(summary.total_bytes("up"), rel=0.05)
    assert made.total_down == pytest.approx(summary.total_bytes("down"), rel=0.05)


def test_all_updates_of_a_round_go_down_where_they_are_relayed() -> None:
    few, many = (plan(method__name="fedex-lora", data__sites=sites) for sites in (2, 8))
    assert few.up["values"] == many.up["values"]
    assert many.bytes_down == pytest.approx(4 * few.bytes_down, rel=0.02)
    assert few.bytes_down == pytest.approx(2 * few.bytes_up, rel=0.02)
    assert many.memory["patch"] > 0 == plan().memory["patch"]


def test_a_large_model_without_weights_or_network() -> None:
    llama = {
        "model.path": "meta-llama/Llama-3.2-3B",
        "runtime.threads": 1,
        "method.name": "fedit",
        "lora.layers": "top:4",
    }
    sparse = {"codec.values": "8bit", "codec.density": 0.15, "codec.mask": "top"}
    made = make_plan(load_config(None, llama | sparse), calibration=True)
    assert made.parameters == 2_293_760 // 7
    assert made.bytes_round_trip < 2 * 0.15 * made.parameters * 1.6  # a sign, seven bits of level, and positions
    assert made.dense_fp32_round_trip == pytest.approx(8 * made.parameters, rel=1e-2)
    assert made.seconds is None
    assert made.no_seconds.startswith("meta-llama/Llama-3.2-3B is not on this machine")


# -- clients, and time -----------------------------------------------------------------------------------


def test_where_the_number_of_clients_comes_from(tmp_path: Path) -> None:
    assert (plan(data__sites=3).clients, plan(data__sites=3).clients_from) == (3, "the data")
    gone = {"data__sets": ["boolq"], "data__dir": str(tmp_path), "partition__kind": "iid"}
    told = plan(**gone, partition__clients=7, federation__fraction=0.5)
    assert (told.clients, told.visits, told.clients_from) == (7, 4, "partition.clients")
    calibrated = make_plan(tiny_config("unused", **gone))
    assert (calibrated.clients, calibrated.clients_from) == (10, "the default of 10, as the data are not here")
    assert calibrated.seconds is None
    assert calibrated.no_seconds.startswith("the data are not here: ")
    assert "boolq/train.jsonl: no such file" in calibrated.no_seconds


def test_mistakes_are_those_of_a_run() -> None:
    with pytest.raises(ConfigError, match="no data set is called 'helpdsk'"):
        plan(data__sets=["helpdsk"])
    with pytest.raises(ConfigError, match="no linear layer 'query'"):
        plan(lora__targets=["query"])
    with pytest.raises(DataError, match="61 clients cannot share 60 items"):
        plan(partition__kind="iid", partition__clients=61)
    with pytest.raises(ModelError, match="cannot read the shapes of 'no/model'"):
        plan(model__path="no/model")


def test_time_is_measured_where_model_and_data_are_here(tmp_path: Path) -> None:
    settings = {"evaluation__references": ["local"], "train__steps": None, "train__epochs": 2}
    made = make_plan(tiny_config("unused", **settings))
    assert made.seconds is not None
    assert set(made.seconds) == {"loading", "training", "hidden states", "scoring", "messages"}
    assert all(n > 0 for n in made.seconds.values())
    assert made.no_seconds == ""
    assert made.length < TINY.get("data.max_length", 256)  # the rows that there are
    tiny.model(layers=2).config.save_pretrained(tmp_path)
    without_weights = make_plan(tiny_config("unused", model__path=str(tmp_path)))
    assert without_weights.seconds is None
    assert "cannot load" in without_weights.no_seconds


# -- memory ----------------------------------------------------------------------------------------------


def memory(config: Config, **changes: object) -> dict[str, int]:
    module = skeleton(config.model)
    shapes = adapter_shapes(module, config.lora)
    known: dict[str, object] = {"length": 64, "answers": 1, "rows": 10, "lossy": True, "log": 5, "process": 7}
    return estimate(config, module, shapes, **(known | changes))  # type: ignore[arg-type]


def test_memory_adds_up() -> None:
    config = tiny_config("unused", lora__layers="all")
    found = memory(config)
    p = 4 * 896  # four layers; A 8 x 32 twice, B 32 x 8 and 16 x 8
    assert found["base"] == 4 * sum(t.numel() for t in tiny.model().parameters())
    assert (found["training"], found["client"], found["server"]) == (16 * p, 16 * p, 24 * p + 5)
    assert (found["hidden states"], found["process"]) == (0, 7)
    assert found["total"] == sum(n for name, n in found.items() if name != "total")
    assert memory(config, lossy=False)["client"] == 8 * p
    half = memory(tiny_config("unused", lora__layers="all", model__dtype="bfloat16"))
    assert 2 * half["base"] == found["base"]
    cached = tiny_config("unused", runtime__cache="memory")
    assert memory(cached)["hidden states"] == 10 * 64 * 32 * 4
    assert memory(cached, rows=None)["hidden states"] == 4 * 2**30
    assert memory(tiny_config("unused", runtime__cache="disk"))["hidden states"] == 0


@pytest.mark.parametrize("layers", ["all", "top:2"])
def test_activations_are_about_what_torch_keeps(layers: str) -> None:
    model = AdaptedModel(load_base(ModelConfig(path="tiny", device="cpu")), LoraConfig(layers=layers))
    model.write({name: torch.full(p.shape, 0.01) for name, p in model.parameters.items()})
    weights = {p.untyped_storage().data_ptr() for p in model.base.module.parameters()}
    ids = torch.arange(4 * 64).reshape(4, 64) % 250
    hidden, seen, alive = model.lower(ids) if layers != "all" else None, {}, []

    def keep(t: torch.Tensor) -> torch.Tensor:
        alive.append(t)
        if t.untyped_storage().data_ptr() not in weights:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        torch.nn.functional.cross_entropy(model.logits(ids, torch.arange(4) * 64 + 63, hidden), torch.zeros(4).long())
    config = tiny_config("unused", lora__layers=layers, train__batch_size=4, evaluation__batch_size=1)
    assert memory(config, length=64)["activations"] >= 0.9 * sum(seen.values())
    if layers == "all":  # with two layers, the blocks of those below take more
        assert memory(config, length=64)["activations"] < 1.1 * sum(seen.values())


def test_parts_and_checkpointing_need_less() -> None:
    def activations(**changes: object) -> int:
        few = {"evaluation__batch_size": 1, "lora__layers": "all", "train__batch_size": 8}
        return memory(tiny_config("unused", **few, **changes), length=100, answers=2)["activations"]

    layer = 4 * (32 + 32 + 32 + 32 + 64 + 64 + 64) + 8 * 32  # q, k, v, o, gate, up, down: the wider side; two norms
    logits = 12 * 2 * tiny.VOCAB
    assert activations() == 8 * (100 * 4 * layer + logits)
    assert activations(train__accumulate=3) == 3 * (100 * 4 * layer + logits)  # of 3, 3 and 2 items
    assert activations(train__checkpointing=True) == 8 * (100 * (4 * 4 * 32 + 1.5 * layer) + logits)


def test_advice_for_llama_3b_at_2048_tokens() -> None:
    """In the order of what changes cost; under each, the estimate itself is small enough."""
    half, again = {"model.dtype": "bfloat16"}, {"train.checkpointing": True}
    rooms: dict[int, dict[str, object]] = {
        200: {},
        100: {"train.accumulate": 2},
        30: {"train.accumulate": 8, "evaluation.batch_size": 16},
        25: again | {"train.accumulate": 2, "evaluation.batch_size": 16},
        14: half | again | {"train.accumulate": 2, "evaluation.batch_size": 16},
        5: half | again | {"train.accumulate": 8, "evaluation.batch_size": 2},
    }
    llama = {"model.path": "meta-llama/Llama-3.2-3B", "data.max_length": 2048, "model.device": "cpu"}
    config = load_config(None, llama)
    module = skeleton(config.model)
    shapes = adapter_shapes(module, config.lora)

    def estimated(config: Config) -> dict[str, int]:
        return estimate(config, module, shapes, length=2048, answers=1, rows=None, lossy=True, log=0, process=0)

    for room, settings in rooms.items():
        advice = advise(config, estimated, room * 10**9)
        assert advice.settings == settings
        assert advice.bytes == estimated(changed(config, settings))["total"]
        assert advice.fits == (room > 5) == (ABOVE * advice.bytes <= room * 10**9)
        words = str(advice)
        assert (words == "") == (not settings)
        assert all(f"--{key} {str(value).lower()}" in words for key, value in settings.items())
        assert ("take a smaller model" in words) == (room == 5)


# -- what is said ----------------------------------------------------------------------------------------


def test_the_table_says_all_of_it() -> None:
    some = {"codec__values": "bf16", "codec__density": 0.1, "federation__fraction": 0.5, "data__sites": 4}
    made = make_plan(tiny_config("unused", method__name="fedit", **some), calibration=False, room=1)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(plan_tables(made))
    text = capture.get()
    for word in ("header", "values", "first round", "dense fp32", "peak memory", "does not fit into 1 B"):
        assert word in text, word
    assert f"{made.bytes_up:,}" in text
    assert "2 of 4 clients (from the data) in each of 2 rounds" in text
    assert "--no-calibrate was given" in text
    assert "scales" not in text  # bf16 has none


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (59, "59 s"), (61, "1 min 1 s"), (3600 * 5 + 61, "5 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
