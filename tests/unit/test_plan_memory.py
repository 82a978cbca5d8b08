"""The memory that a plan foretells, and the settings with which a run fits."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from capfl.config import Config, load_config
from capfl.config.load import changed
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.model import tiny
from capfl.model.base import load_base, skeleton
from capfl.model.layers import adapter_shapes
from capfl.model.lora import AdaptedModel
from capfl.model.parts import at_once
from capfl.plan import make_plan
from capfl.plan.memory import ABOVE, WORKER, advise, estimate, of_a_worker
from capfl.plan.table import plan_tables
from capfl.report.tables import size
from support import tiny_config

QV: dict[str, object] = {"lora.layers": "all", "lora.targets": ["q_proj", "v_proj"]}


def memory(**changes: object) -> dict[str, int]:
    """The estimate for the tiny model. Changes of the config have a `__`, others are arguments of ``estimate``."""
    config = tiny_config("unused", **{key: value for key, value in changes.items() if "__" in key})
    module = skeleton(config.model)
    known: dict[str, object] = {"length": 64, "answers": 1, "written": 0, "rows": 10}
    known |= {"lossy": True, "patched": False, "process": 7}
    known |= {key: value for key, value in changes.items() if "__" not in key}
    return estimate(config, module, adapter_shapes(module, config.lora), **known)  # type: ignore[arg-type]


def test_memory_adds_up() -> None:
    found = memory(lora__layers="all")
    p = 4 * 896  # four layers; A 8 x 32 twice, B 32 x 8 and 16 x 8
    assert found["base"] == 4 * sum(t.numel() for t in tiny.model().parameters())
    assert (found["training"], found["client"], found["server"]) == (16 * p, 16 * p, 28 * p)
    assert (found["hidden states"], found["process"]) == (0, 7)
    assert found["total"] == sum(n for name, n in found.items() if name != "total")
    assert (memory(lora__layers="all", lossy=False)["client"], memory(patched=True)["patch"] > 0) == (8 * p, True)
    assert 2 * memory(lora__layers="all", model__dtype="bfloat16")["base"] == found["base"]


def test_each_worker_has_memory_of_its_own_and_shares_the_rest() -> None:
    one, three = memory(), memory(runtime__workers=3)
    for name in ("training", "activations", "client"):
        assert three[name] == 3 * one[name]
    own = one["training"] + one["activations"] + one["client"] + WORKER
    assert three["total"] - one["total"] == 2 * own + WORKER
    assert (of_a_worker(one, 1), of_a_worker(three, 3)) == (None, own)
    config = tiny_config("unused", runtime__workers=3, lora__layers="top:2")
    made, words = make_plan(config, calibration=False), Console(width=90)
    assert made.memory_per_worker == of_a_worker(made.memory, 3)
    with words.capture() as capture:
        words.print(plan_tables(made))
    assert f"each worker {size(made.memory_per_worker)} of it" in " ".join(capture.get().split())
    room = int(ABOVE * memory()["total"])
    settings = advise(
        tiny_config("unused", runtime__workers=3, train__accumulate=4, evaluation__batch_size=1),
        lambda config: memory(runtime__workers=config.runtime.workers, train__checkpointing=config.train.checkpointing),
        room,
    ).settings
    assert settings == {"runtime.workers": 1}


def test_clients_in_one_pass_take_as_many_rows_and_optimisers() -> None:
    one, four = (memory(runtime__clients_per_pass=n, evaluation__batch_size=1, lora__layers="all") for n in (1, 4))
    assert [four[part] / one[part] for part in ("training", "client", "activations", "server")] == [4, 4, 4, 1]


def test_protected_items_have_copies_of_the_factors() -> None:
    on = {"privacy__protects": "items", "privacy__clip": 1.0, "privacy__noise_multiplier": 1.0}
    p = memory()["training"] // 16
    assert memory(**on, train__batch_size=6, train__accumulate=2)["training"] == (16 + 12 * 3 + 16) * p


def test_the_cache_counts_where_it_is_in_memory() -> None:
    rows = 10 * 64 * 32 * 4
    assert memory(runtime__cache="memory")["hidden states"] == rows
    assert memory(runtime__cache="memory", rows=None)["hidden states"] == 4 * 2**30
    assert memory(runtime__cache="disk")["hidden states"] == 0
    assert memory(runtime__cache="memory", lora__layers="all")["hidden states"] == 0


@pytest.mark.parametrize("layers", ["all", "top:2"])
def test_activations_are_about_what_torch_keeps(layers: str) -> None:
    model = AdaptedModel(
        load_base(ModelConfig(path="tiny", device="cpu")), LoraConfig(layers=layers, targets=("q_proj", "v_proj"))
    )
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
    found = memory(lora__layers=layers, train__batch_size=4, evaluation__batch_size=1)["activations"]
    assert found >= 0.9 * sum(seen.values())
    if layers == "all":  # with two layers, scoring takes more
        assert found < 1.1 * sum(seen.values())


def test_parts_and_checkpointing_need_less() -> None:
    def activations(**changes: object) -> int:
        few = {"evaluation__batch_size": 1, "lora__layers": "all", "train__batch_size": 8}
        return memory(**few, **changes, length=100, answers=2)["activations"]

    layer = 4 * (32 + 32 + 32 + 32 + 64 + 64 + 64) + 8 * 32  # q, k, v, o, gate, up, down: the wider side; two norms
    logits = 12 * 2 * tiny.VOCAB
    assert activations() == 8 * (100 * 4 * layer + logits)
    assert activations(train__accumulate=3) == 3 * (100 * 4 * layer + logits)  # of 3, 3 and 2 items
    at_most = 16 * tiny.VOCAB * at_once(tiny.VOCAB)
    assert memory(lora__layers="all", answers=10**6)["activations"] < at_most  # of 8 * 10**6 positions
    assert activations(train__checkpointing=True) == 8 * (100 * (4 * 4 * 32 + 1.5 * layer) + logits)


def test_written_answers_need_keys_and_values() -> None:
    few = {"evaluation__batch_size": 3, "lora__layers": "all", "train__batch_size": 1, "length": 50}
    layer = 4 * (32 + 32 + 32 + 32 + 64 + 64 + 64) + 8 * 32
    keys = 4 * 4 * 2 * 2 * 8  # float32, four layers, keys and values, two heads of eight
    found = memory(**few, written=900)["activations"]
    assert found == 3 * (50 * layer + 950 * keys + 8 * tiny.VOCAB)
    assert memory(**few)["activations"] < found


def test_advice_for_llama_3b_at_2048_tokens() -> None:
    """In the order of what changes cost; under each, the estimate itself is small enough."""
    half, again = {"model.dtype": "bfloat16"}, {"train.checkpointing": True}
    rooms: dict[int, dict[str, object]] = {
        230: {},
        116: {"train.accumulate": 2},
        35: {"train.accumulate": 8, "evaluation.batch_size": 16},
        29: again | {"train.accumulate": 2, "evaluation.batch_size": 16},
        17: half | again | {"train.accumulate": 2, "evaluation.batch_size": 16},
        5: half | again | {"train.accumulate": 8, "evaluation.batch_size": 2},
    }
    llama = {"model.path": "meta-llama/Llama-3.2-3B", "data.max_length": 2048, "model.device": "cpu", **QV}
    config = load_config(None, llama)
    module = skeleton(config.model)
    shapes = adapter_shapes(module, config.lora)

    def estimated(config: Config) -> dict[str, int]:
        of_rows = {"length": 2048, "answers": 1, "written": 0, "rows": None}
        return estimate(config, module, shapes, **of_rows, lossy=True, patched=False, process=0)  # type: ignore[arg-type]

    for room, settings in rooms.items():
        advice = advise(config, estimated, room * 10**9)
        assert advice.settings == settings
        assert advice.bytes == estimated(changed(config, settings))["total"]
        assert advice.fits == (room > 5) == (ABOVE * advice.bytes <= room * 10**9)
        words = str(advice)
        assert (words == "") == (not settings)
        assert all(f"--{key} {str(value).lower()}" in words for key, value in settings.items())
        assert ("take a smaller model" in words) == (room == 5)
    elsewhere = changed(config, {"model.device": "mps" if torch.cuda.is_available() else "cuda"})
    assert (advise(elsewhere, estimated).room, str(advise(elsewhere, estimated))) == (None, "")
