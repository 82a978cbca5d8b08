"""No key of a config is ornament: changing any one of them changes something that can be observed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from capfl.config import load_config
from capfl.config.keys import all_keys
from capfl.data import deal, digest
from capfl.engines.serial import serial
from capfl.errors import CapflError
from capfl.experiment import run
from capfl.model import tiny
from capfl.model.lora import AdaptedModel
from support import TINY

Value = object | Callable[[Path], object]


@dataclass(frozen=True)
class Change:
    """Another value for a key, and the part of the results that must not be the same with it."""

    value: Value  # a function of the folder of test files, or the value itself
    part: str
    needs: dict[str, Value] = field(default_factory=dict)  # settings without which the key has no say
    broken: bool = False  # one client's training fails


def at(name: str) -> Callable[[Path], object]:
    return lambda files: str(files / name)


def inside(name: str) -> Callable[[Path], object]:
    return lambda files: [str(files / name)]


def absent_device() -> str:
    return "mps" if torch.cuda.is_available() else "cuda"


IID = {"partition.kind": "iid", "partition.clients": 2}
BOOLQ: dict[str, Value] = {"data.sets": ["boolq"], "data.dir": at("one"), "data.max_length": 48, **IID}
OWN: dict[str, Value] = {"data.sets": inside("labels.jsonl")}
SOME: dict[str, Value] = {"data.sites": 4, "federation.rounds": 1}
ONE: dict[str, Value] = {"federation.rounds": 1}
CAPFL: dict[str, Value] = {"method.name": "ca-pfl"}
SPARSE: dict[str, Value] = {"codec.density": 0.1, "codec.mask": "top"}
PRIVATE: dict[str, Value] = {"privacy.clip": 0.1, "privacy.noise_multiplier": 1.0, "privacy.seed": 1}

DEALT = {  # what is seen in who holds what; nothing is trained
    "data.sets": Change(inside("labels.jsonl"), "dealt"),
    "data.dir": Change(at("two"), "dealt", BOOLQ),
    "data.split": Change("validation", "dealt", BOOLQ),
    "data.limit": Change(45, "dealt"),
    "data.labels": Change(["b", "a"], "dealt", OWN),
    "data.sites": Change(3, "dealt"),
    "data.items": Change(36, "dealt"),
    "data.conflict": Change(1.0, "dealt"),
    "partition.kind": Change("dirichlet", "dealt", {"partition.clients": 2, "partition.min_items": 3}),
    "partition.clients": Change(4, "dealt"),
    "partition.alpha": Change(9.0, "dealt", {**IID, "partition.kind": "dirichlet", "partition.min_items": 3}),
    "partition.max_items": Change(20, "dealt"),
    "partition.min_items": Change(31, "error"),
    "partition.validation": Change(0.3, "dealt"),
    "partition.test": Change(0.4, "dealt"),
}

CHANGES = DEALT | {
    "seed": Change(1, "state"),
    "out": Change("elsewhere", "place"),
    "model.path": Change(at("other-model"), "state", ONE),
    "model.device": Change(absent_device(), "error"),
    "model.dtype": Change("bfloat16", "state"),
    "model.quantization": Change("4bit", "error", {"model.device": "cpu"}),
    "lora.rank": Change(2, "bytes"),
    "lora.alpha": Change(64.0, "state"),
    "lora.dropout": Change(0.5, "state"),
    "lora.targets": Change(["q_proj"], "bytes"),
    "lora.layers": Change("top:1", "bytes"),
    "data.scoring": Change("text", "state", ONE),
    "data.max_length": Change(24, "state"),
    "federation.rounds": Change(3, "state"),
    "federation.fraction": Change(0.5, "state", SOME),
    "federation.on_failure": Change("skip", "error", SOME, broken=True),
    "federation.max_items": Change(20, "error"),
    "federation.max_norm": Change(1e-3, "error"),
    "federation.robust": Change("median", "state", SOME),
    "train.epochs": Change(2, "state", {**ONE, "train.steps": None}),
    "train.steps": Change(3, "state"),
    "train.batch_size": Change(3, "state"),
    "train.accumulate": Change(2, "widest", {"train.batch_size": 40, "evaluation.batch_size": 2}),
    "train.checkpointing": Change(True, "recomputed"),
    "train.learning_rate": Change(1e-3, "state"),
    "train.schedule": Change("linear", "state"),
    "train.max_grad_norm": Change(1e-3, "state"),
    "method.name": Change("local", "bytes"),
    "method.alpha_f": Change(1.0, "state"),
    "method.alpha_s": Change(1.0, "state", CAPFL),
    "method.alpha_p": Change(1.0, "state", CAPFL),
    "method.rff_output_dim": Change(8, "state", CAPFL),
    "method.mlp_hidden_dim": Change(2, "state", CAPFL),
    "method.rank_floor": Change(1.0, "adapters", CAPFL),
    "method.peer_distance": Change(1e6, "state", {**BOOLQ, **CAPFL, "partition.clients": 3}),
    "method.rank_shares": Change([1.0, 0.5], "bytes", {"method.name": "flexlora"}),
    "codec.values": Change("bf16", "bytes"),
    "codec.density": Change(0.5, "bytes"),
    "codec.down_values": Change("4bit", "bytes"),
    "codec.down_density": Change(0.5, "bytes"),
    "codec.mask": Change("top", "bytes", {"codec.density": 0.1}),
    "codec.compensation": Change("off", "state", SPARSE),
    "privacy.clip": Change(0.05, "state", PRIVATE),
    "privacy.noise_multiplier": Change(2.0, "state", PRIVATE),
    "privacy.delta": Change(1e-3, "rounds", PRIVATE),
    "privacy.seed": Change(2, "state", PRIVATE),
    "evaluation.every": Change(2, "rounds"),
    "evaluation.batch_size": Change(2, "widest"),
    "evaluation.personal": Change(False, "adapters"),
    "evaluation.references": Change(["local"], "summary"),
    "runtime.cache": Change("off", "cache"),
    "runtime.cache_gib": Change(1e-6, "cache"),
    "runtime.cache_dir": Change(at("shared"), "shared"),
    "runtime.state_key": Change(lambda files: f"file:{files / 'key'}", "state"),
    "runtime.threads": Change(2, "threads"),
}

ONLY_ASIDE = [key for key in CHANGES if key.startswith("evaluation.")] + [
    "out", "train.checkpointing", "runtime.cache", "runtime.cache_gib", "runtime.cache_dir"
]  # fmt: skip


# -- what can be observed of a run ---------------------------------------------------------------------


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob(pattern)) if p.is_file()}


def observe(place: Path, settings: dict[str, object], dealt: bool, broken: bool) -> dict[str, object]:
    """Run, or deal out alone, and collect everything that a user could notice, in parts."""
    config = load_config(None, TINY | {"out": str(place)} | settings)
    seen: dict[str, object] = {"error": None, "state": None}
    widest: list[int] = []
    threads, logits = torch.get_num_threads(), AdaptedModel.logits

    def noted(self: AdaptedModel, ids: Any, positions: Any, hidden: Any = None) -> Any:
        widest.append(ids.shape[0])
        return logits(self, ids, positions, hidden)

    try:
        if dealt:
            return seen | {"dealt": digest(*deal(config.data, config.partition, config.seed))}
        AdaptedModel.logits = noted  # type: ignore[method-assign]
        summary, out = run(config, failing if broken else serial)
    except CapflError as error:
        return seen | {"error": (type(error).__name__, str(error))}
    finally:
        AdaptedModel.logits = logits  # type: ignore[method-assign]
        seen["threads"] = torch.get_num_threads()
        torch.set_num_threads(threads)
    report = summary.to_json()
    del report["seconds"], report["peak_memory"]
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return seen | {
        "place": out.name,
        "widest": max(widest),
        "recomputed": 0 in widest,
        "state": contents(out, "state/**/*"),
        "adapters": contents(out, "adapters/**/*.safetensors"),
        "rounds": [json.dumps({k: v for k, v in record.items() if k != "seconds"}) for record in rounds],
        "bytes": [dataclasses.astuple(entry) for entry in summary.ledger],
        "cache": report.pop("cache"),
        "shared": len(list(Path(config.runtime.cache_dir).iterdir())) if config.runtime.cache_dir else 0,
        "summary": report,
    }


def failing(site: Callable[[str], Any], *others: Any) -> Any:
    """The serial engine, in which the client that is asked first has a fault, each time it is asked."""
    asked: list[str] = []

    def broken(client: str) -> Any:
        asked.append(client)
        if client == asked[0]:
            raise ValueError("the lights went out")
        return site(client)

    return serial(broken, *others)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data and a small model that keys can name."""
    folder = tmp_path_factory.mktemp("files")
    for part in ("one", "two"):
        (folder / part / "boolq").mkdir(parents=True)
        for split in ("train", "validation"):
            rows = [
                {"passage": f"{part} {split} {i}", "question": "is it even", "answer": i % 2 == 0} for i in range(40)
            ]
            (folder / part / "boolq" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"text": f"call {i}", "label": "ab"[i % 2], "site": "xyz"[i % 3]} for i in range(45)]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "key").write_text("5a" * 32)
    tiny.model(layers=3, seed=2).save_pretrained(folder / "other-model")
    tiny.tokenizer().save_pretrained(folder / "other-model")
    return folder


@pytest.fixture(scope="module")
def before(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, object]]:
    """What is seen without the change: many keys share one run."""
    by_settings: dict[str, dict[str, object]] = {}

    @cache
    def of(key: str) -> dict[str, object]:
        change, needs = CHANGES[key], given(CHANGES[key].needs, files)
        shared = repr((sorted(needs.items()), key in DEALT, change.broken))
        if shared not in by_settings:
            by_settings[shared] = observe(tmp_path_factory.mktemp("run") / "run", needs, key in DEALT, change.broken)
        return by_settings[shared]

    return of


def given(settings: dict[str, Value], files: Path) -> dict[str, object]:
    return {name: value(files) if callable(value) else value for name, value in settings.items()}


def test_the_table_has_every_key() -> None:
    assert set(CHANGES) == set(all_keys())


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_has_an_effect(key: str, files: Path, tmp_path: Path, before: Callable[[str], dict[str, object]]) -> None:
    change, plain = CHANGES[key], before(key)
    value = str(tmp_path / "elsewhere") if key == "out" else change.value
    settings = given(change.needs | {key: value}, files)
    after = observe(tmp_path / "changed" / "run", settings, key in DEALT, change.broken)
    assert plain.get(change.part) != after.get(change.part)
    if change.part != "error":
        assert plain["error"] is None
        assert after["error"] is None
    if key in ONLY_ASIDE:  # these say what is reported and where, never what is learnt
        assert plain["state"] == after["state"]
    for name, message in {
        "model.device": f"model.device: {absent_device()} is not available",
        "model.quantization": "model.quantization: 4bit needs CUDA",
        "partition.min_items": "fewer than partition.min_items = 31 items",
    }.items():
        assert key != name or message in str(after["error"])
    if key == "federation.on_failure":
        assert "the lights went out" in str(plain["error"])
        assert after["error"] is None
