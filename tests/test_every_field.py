"""No key of a config is ornament: changing any one of them changes something that can be observed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from capfl.checkpoint import ClientStore
from capfl.config import load_config
from capfl.config.keys import all_keys
from capfl.engines.serial import serial
from capfl.errors import CapflError
from capfl.experiment import run
from capfl.model import tiny
from capfl.model.lora import AdaptedModel
from capfl.roles import Agreement
from capfl.roles.client import Site
from capfl.types import Exchange
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


def key_file(files: Path) -> object:
    (files / "key").write_text("5a" * 32)
    return f"file:{files / 'key'}"


IID = {"partition.kind": "iid", "partition.clients": 2}
DIRICHLET: dict[str, Value] = {"partition.kind": "dirichlet", "partition.clients": 2, "partition.min_items": 3}
SHARDS: dict[str, Value] = {"partition.kind": "shards", "partition.clients": 3}
CONFLICT: dict[str, Value] = {"partition.kind": "conflict", "partition.clients": 4}
BOOLQ: dict[str, Value] = {"data.sets": ["boolq"], "data.dir": at("one"), "data.max_length": 48, **IID}
EPOCHS: dict[str, Value] = {"train.steps": None}
SOME: dict[str, Value] = {"data.sites": 4, "federation.rounds": 1}
CAPFL: dict[str, Value] = {"method.name": "ca-pfl"}
SPARSE: dict[str, Value] = {"codec.density": 0.1, "codec.mask": "top"}
ABSENT: dict[str, Value] = {  # of four clients one takes part in the second round and the fourth, not in the third
    **SPARSE, "data.sites": 4, "federation.fraction": 0.5, "federation.rounds": 4,
}  # fmt: skip

PRIVATE: dict[str, Value] = {"privacy.clip": 0.1, "privacy.noise_multiplier": 1.0, "privacy.seed": 1}

CHANGES = {
    "seed": Change(1, "state"),
    "out": Change("elsewhere", "place"),
    "model.path": Change(at("other-model"), "state"),
    "model.device": Change(absent_device(), "error"),
    "model.dtype": Change("bfloat16", "state"),
    "model.quantization": Change("4bit", "error", {"model.device": "cpu"}),
    "lora.rank": Change(2, "bytes"),
    "lora.alpha": Change(64.0, "state"),
    "lora.dropout": Change(0.5, "state"),
    "lora.targets": Change(["q_proj"], "names"),
    "lora.layers": Change("top:1", "names"),
    "data.sets": Change(inside("labels.jsonl"), "partition"),
    "data.dir": Change(at("two"), "state", BOOLQ),
    "data.split": Change("validation", "state", BOOLQ),
    "data.limit": Change(40, "partition", IID),
    "data.scoring": Change("text", "state", {"federation.rounds": 1}),
    "data.labels": Change(["b", "a"], "state", {"data.sets": inside("labels.jsonl"), "federation.rounds": 1}),
    "data.max_length": Change(24, "state"),
    "data.sites": Change(3, "partition"),
    "data.items": Change(36, "partition"),
    "data.conflict": Change(1.0, "state"),
    "partition.kind": Change("iid", "partition", {"partition.clients": 2}),
    "partition.clients": Change(4, "partition"),
    "partition.field": Change("intent", "partition", {**DIRICHLET, "data.conflict": 1.0}),
    "partition.alpha": Change(50.0, "partition", DIRICHLET),
    "partition.shards": Change(1, "partition", SHARDS),
    "partition.clusters": Change(3, "state", CONFLICT),
    "partition.conflict": Change(0.3, "state", CONFLICT),
    "partition.size_sigma": Change(0.5, "partition", IID),
    "partition.max_items": Change(20, "partition"),
    "partition.min_items": Change(31, "error"),
    "partition.validation": Change(0.3, "partition"),
    "partition.test": Change(0.4, "partition"),
    "federation.rounds": Change(3, "state"),
    "federation.fraction": Change(0.5, "state", SOME),
    "federation.on_failure": Change("skip", "error", SOME, broken=True),
    "federation.retries": Change(2, "rounds", {**SOME, "federation.on_failure": "retry"}, broken=True),
    "federation.max_items": Change(20, "error"),
    "federation.max_norm": Change(1e-3, "error"),
    "federation.robust": Change("median", "state", SOME),
    "federation.robust_clip": Change(0.5, "state", {**SOME, "federation.robust": "clip"}),
    "federation.robust_trim": Change(0.2, "state", {**SOME, "data.sites": 5, "federation.robust": "trimmed"}),
    "train.epochs": Change(2, "state", EPOCHS),
    "train.steps": Change(3, "state"),
    "train.batch_size": Change(3, "state"),
    "train.accumulate": Change(2, "widest", {"train.batch_size": 40, "evaluation.batch_size": 2}),
    "train.checkpointing": Change(True, "recomputed"),
    "train.learning_rate": Change(1e-3, "state"),
    "train.schedule": Change("linear", "state"),
    "train.weight_decay": Change(0.1, "state"),
    "train.max_grad_norm": Change(1e-3, "state"),
    "method.name": Change("local", "bytes"),
    "method.alpha_f": Change(1.0, "state"),
    "method.alpha_s": Change(1.0, "state", CAPFL),
    "method.alpha_p": Change(1.0, "state", CAPFL),
    "method.rff_output_dim": Change(8, "bytes", CAPFL),
    "method.mlp_hidden_dim": Change(2, "state", CAPFL),
    "method.base_sparsity_ratio": Change(0.5, "bytes", CAPFL),
    "method.kappa": Change("free", "state", CAPFL),
    "method.evidence": Change("norm", "state", CAPFL),
    "method.budget": Change("uniform", "bytes", CAPFL),
    "method.rank_floor": Change(1.0, "adapters", CAPFL),
    "method.peers": Change("all", "bytes", CAPFL),
    "method.peer_distance": Change(1e6, "state", {**BOOLQ, **CAPFL, "partition.clients": 3}),
    "method.alternate": Change(True, "bytes", CAPFL),
    "method.gate": Change(True, "state", CAPFL),
    "method.rank_shares": Change([1.0, 1.0], "bytes", {"method.name": "hetlora"}),
    "method.prune_to": Change(0.2, "state", {"method.name": "hetlora", "train.learning_rate": 0.05}),
    "method.prune_weight": Change(10.0, "state", {"method.name": "hetlora"}),
    "method.start_density": Change(0.5, "bytes", {"method.name": "flasc"}),
    "method.server_learning_rate": Change(0.1, "state", {"method.name": "flasc"}),
    "codec.values": Change("bf16", "bytes"),
    "codec.density": Change(0.5, "bytes"),
    "codec.down_values": Change("4bit", "bytes"),
    "codec.down_density": Change(0.5, "bytes"),
    "codec.mask": Change("top", "bytes", {"codec.density": 0.1}),
    "codec.scope": Change("global", "state", SPARSE),
    "codec.compensation": Change("off", "state", SPARSE),
    "codec.step_ahead": Change(1.0, "state", SPARSE),
    "codec.residual_decay": Change(0.5, "state", SPARSE),
    "codec.residual_rounds": Change(1, "state", ABSENT),
    "codec.warmup_rounds": Change(2, "bytes", SPARSE),
    "codec.warmup_density": Change(0.5, "bytes", {**SPARSE, "codec.warmup_rounds": 2}),
    "privacy.clip": Change(0.05, "state", PRIVATE),
    "privacy.noise_multiplier": Change(2.0, "state", PRIVATE),
    "privacy.delta": Change(1e-3, "rounds", PRIVATE),
    "privacy.seed": Change(2, "state", PRIVATE),
    "evaluation.every": Change(2, "rounds"),
    "evaluation.max_items": Change(1, "rounds"),
    "evaluation.batch_size": Change(2, "widest"),
    "evaluation.personal": Change(False, "adapters"),
    "evaluation.mix": Change(0.5, "adapters"),
    "evaluation.references": Change(["local"], "summary"),
    "runtime.cache": Change("off", "cache"),
    "runtime.cache_gib": Change(1e-6, "cache"),
    "runtime.cache_dir": Change(lambda files: str(files / "shared"), "shared"),
    "runtime.state_key": Change(key_file, "state"),
    "runtime.threads": Change(2, "threads"),
}

ONLY_ASIDE = [key for key in CHANGES if key.startswith("evaluation.")] + [
    "out", "train.checkpointing", "runtime.cache", "runtime.cache_gib", "runtime.cache_dir"
]  # fmt: skip


# -- what can be observed of a run ---------------------------------------------------------------------


def without_seconds(text: str) -> Any:
    def drop(value: dict[str, Any]) -> dict[str, Any]:
        return {key: v for key, v in value.items() if key != "seconds"}

    return [json.loads(line, object_hook=drop) for line in text.splitlines()]


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob(pattern)) if p.is_file()}


def observe(place: Path, settings: dict[str, object], broken: bool, widest: list[int]) -> dict[str, object]:
    """Run, and collect everything that a user could notice, in parts."""
    config = load_config(None, TINY | {"out": str(place)} | settings)
    seen: dict[str, object] = {"error": None}

    def engine(site: Callable[[str], Site], store: ClientStore, agreement: Agreement) -> Exchange:
        seen["names"] = list(agreement.initial)
        return serial(failing(site) if broken else site, store, agreement)

    threads = torch.get_num_threads()
    widest.clear()
    try:
        summary, out = run(config, engine)
    except CapflError as error:
        return seen | {"error": (type(error).__name__, str(error))}
    finally:
        seen["threads"] = torch.get_num_threads()
        torch.set_num_threads(threads)
    report = summary.to_json()
    del report["seconds"], report["peak_memory"]
    return seen | {
        "place": out.name,
        "widest": max(widest),
        "recomputed": 0 in widest,
        "state": contents(out, "state/**/*"),
        "adapters": contents(out, "adapters/**/*.safetensors"),
        "partition": json.loads((out / "partition.json").read_text()),
        "rounds": without_seconds((out / "rounds.jsonl").read_text()),
        "bytes": [dataclasses.astuple(entry) for entry in summary.ledger],
        "cache": report.pop("cache"),
        "shared": len(list(Path(config.runtime.cache_dir).iterdir())) if config.runtime.cache_dir else 0,
        "summary": report,
    }


def failing(site: Callable[[str], Site]) -> Callable[[str], Site]:
    """The first client that is asked has a fault, each time it is asked."""
    unlucky: list[str] = []

    def broken(client: str) -> Site:
        unlucky.append(client)
        if client == unlucky[0]:
            raise ValueError("the lights went out")
        return site(client)

    return broken


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
    tiny.model(layers=3, seed=2).save_pretrained(folder / "other-model")
    tiny.tokenizer().save_pretrained(folder / "other-model")
    return folder


@pytest.fixture(scope="module")
def plain_runs() -> dict[str, dict[str, object]]:
    """Runs without the change, by their settings: many keys share one."""
    return {}


@pytest.fixture
def widest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of sequences that the model is given at once, and a 0 for each layer that will be computed again."""
    seen: list[int] = []
    real = AdaptedModel.logits

    def logits(self, ids, positions, hidden=None):  # type: ignore[no-untyped-def]
        seen.append(ids.shape[0])
        return real(self, ids, positions, hidden)

    def again(layer, *args, **more):  # type: ignore[no-untyped-def]
        seen.append(0)
        return checkpoint(layer, *args, **more)

    monkeypatch.setattr(AdaptedModel, "logits", logits)
    monkeypatch.setattr("capfl.model.lora.checkpoint", again)
    return seen


def test_the_table_has_every_key() -> None:
    assert list(CHANGES) == list(all_keys())


@pytest.mark.parametrize("key", all_keys())
def test_a_key_has_an_effect(
    key: str, files: Path, tmp_path: Path, widest: list[int], plain_runs: dict[str, dict[str, object]]
) -> None:
    change = CHANGES[key]

    def given(value: Value) -> object:
        return value(files) if callable(value) else value

    settings = {name: given(value) for name, value in change.needs.items()}
    value = str(tmp_path / str(change.value)) if key == "out" else given(change.value)
    shared = repr((sorted(settings.items()), change.broken))
    if shared not in plain_runs:
        plain_runs[shared] = observe(tmp_path / "run", settings, change.broken, widest)
    before = plain_runs[shared]
    after = observe(tmp_path / "changed" / "run", settings | {key: value}, change.broken, widest)
    assert before.get(change.part) != after.get(change.part)
    if change.part != "error":
        assert before["error"] is None
        assert after["error"] is None
    if key in ONLY_ASIDE:  # these say what is reported and where, never what is learnt
        assert before["state"] == after["state"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.device", f"model.device: {absent_device()} is not available"),
        ("model.quantization", "model.quantization: 4bit needs CUDA"),
        ("partition.min_items", "fewer than partition.min_items = 31 items"),
    ],
)
def test_what_cannot_be_had_is_a_clear_error(key: str, message: str, tmp_path: Path, widest: list[int]) -> None:
    change = CHANGES[key]
    seen = observe(tmp_path / "run", {**change.needs, key: change.value}, False, widest)
    assert seen["error"] is not None
    assert message in str(seen["error"])


def test_the_policies_answer_a_failing_client_each_in_its_own_way(tmp_path: Path, widest: list[int]) -> None:
    def error(name: str, **settings: object) -> object:
        changes = {key.replace("__", "."): value for key, value in settings.items()}
        return observe(tmp_path / name, {**SOME, **changes}, True, widest)["error"]

    stopped = error("a")
    assert stopped == ("ClientError", "client 'airline' failed in round 1 (train): ValueError: the lights went out")
    assert error("b", federation__on_failure="skip") is None
    assert error("c", federation__on_failure="retry") is None
