"""No key of a config is ornament: changing any one of them changes something that can be observed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from capfl.config import Config, load_config
from capfl.config.keys import all_keys
from capfl.data import deal, digest
from capfl.engines.serial import serial
from capfl.errors import CapflError
from capfl.experiment import run
from capfl.model import lora, tiny
from capfl.model.lora import AdaptedModel
from capfl.packing import DIGEST
from capfl.plan import make_plan
from capfl.rng import stream
from capfl.samples import read_samples
from capfl.site import require_metrics
from support import TINY

QUICK = TINY | {
    "federation.rounds": 1, "data.items": 20, "train.batch_size": 2,
    "evaluation.every": 0, "evaluation.personal": False,
}  # fmt: skip
Value = object | Callable[[Path], object]


@dataclass(frozen=True)
class Change:
    """Another value for a key, and the part of what is observed that must not be the same with it."""

    value: Value  # a function of the folder of test files, or the value itself
    part: str
    needs: dict[str, Value] = field(default_factory=dict)  # settings without which the key has no say


def at(name: str) -> Callable[[Path], object]:
    return lambda files: str(files / name)


def inside(name: str) -> Callable[[Path], object]:
    return lambda files: [str(files / name)]


def absent_device() -> str:
    return "mps" if torch.cuda.is_available() else "cuda"


IID = {"partition.kind": "iid", "partition.clients": 2}
BOOLQ: dict[str, Value] = {"data.sets": ["boolq"], "data.dir": at("one"), "data.max_length": 48, **IID}
TEXT: dict[str, Value] = {"data.sets": inside("texts.jsonl"), "evaluation.metrics": ["exact_match", "rouge_l"]}
OWN: dict[str, Value] = {"data.sets": inside("labels.jsonl")}
HELPDESK: dict[str, Value] = {"data.sets": ["helpdesk"]}
CHATS: dict[str, Value] = {"data.sets": inside("chats.json"), "model.path": at("dated-model"), **IID}
SOME: dict[str, Value] = {"data.sets": ["helpdesk"], "data.sites": 4}
TWO: dict[str, Value] = {"federation.rounds": 2}
CAPFL: dict[str, Value] = {"method.name": "ca-pfl", **TWO}
SPARSE: dict[str, Value] = {"codec.density": 0.1, "codec.mask": "top", **TWO}
PRIVATE: dict[str, Value] = {"privacy.clip": 0.1, "privacy.noise_multiplier": 1.0}

DEALT = {  # what is seen in who holds what; nothing is trained
    "data.sets": Change(["helpdesk"], "dealt"),
    "data.dir": Change(at("two"), "dealt", BOOLQ),
    "data.split": Change("validation", "dealt", BOOLQ),
    "data.limit": Change(35, "dealt"),
    "data.labels": Change(["b", "a"], "dealt", OWN),
    "data.columns": Change({"text": "text", "label": "site"}, "dealt", OWN),
    "data.sites": Change(3, "dealt", HELPDESK),
    "data.items": Change(24, "dealt", HELPDESK),
    "data.conflict": Change(1.0, "dealt", HELPDESK),
    "partition.kind": Change("dirichlet", "dealt", {"partition.clients": 2, "partition.min_items": 3}),
    "partition.clients": Change(4, "dealt"),
    "partition.alpha": Change(9.0, "dealt", {**IID, "partition.kind": "dirichlet", "partition.min_items": 3}),
    "partition.spread": Change(0.8, "dealt", {**IID, "partition.min_items": 3}),
    "partition.max_items": Change(14, "dealt"),
    "partition.min_items": Change(21, "error"),
    "partition.validation": Change(0.3, "dealt"),
    "partition.test": Change(0.4, "dealt"),
    "partition.keep_together": Change("intent", "dealt", HELPDESK),
}

CHANGES = DEALT | {
    "seed": Change(1, "state"),
    "out": Change("elsewhere", "place"),
    "model.path": Change(at("other-model"), "state"),
    "model.device": Change(absent_device(), "error"),
    "model.dtype": Change("bfloat16", "state"),
    "model.quantization": Change("8bit", "state", {"model.device": "cpu"}),
    "lora.rank": Change(2, "planned"),
    "lora.alpha": Change(64.0, "state"),
    "lora.dropout": Change(0.5, "state"),
    "lora.targets": Change(["q_proj"], "planned"),
    "lora.layers": Change("top:1", "planned"),
    "data.scoring": Change("text", "state"),
    "data.max_length": Change(12, "state"),
    "data.too_long": Change("refuse", "error", {"data.max_length": 12}),
    "data.assistant_turns": Change("last", "state", CHATS),
    "data.date": Change("1999-12-31", "state", CHATS),
    "federation.rounds": Change(2, "state"),
    "federation.fraction": Change(0.5, "state", SOME),
    "federation.on_failure": Change("skip", "error", {"federation.max_norm": 1e-3}),
    "federation.max_items": Change(5, "error"),
    "federation.max_norm": Change(1e-3, "error"),
    "federation.robust": Change("median", "state", SOME),
    "train.epochs": Change(2, "state", {"train.steps": None, "train.batch_size": 8}),
    "train.steps": Change(3, "state"),
    "train.batch_size": Change(3, "state"),
    "train.accumulate": Change(2, "widest", {"train.batch_size": 8, "evaluation.batch_size": 1}),
    "train.checkpointing": Change(True, "recomputed"),
    "train.learning_rate": Change(1e-3, "state"),
    "train.schedule": Change("linear", "state", TWO),
    "train.max_grad_norm": Change(1e-3, "state"),
    "method.name": Change("local", "planned"),
    "method.turns": Change(2, "state", SOME),
    "method.peers": Change({"airline": "a", "bank": "b"}, "state", SOME | CAPFL),
    "method.server_step": Change(2.0, "state"),
    "method.alpha_f": Change(1.0, "state", TWO),
    "method.alpha_s": Change(1.0, "state", CAPFL),
    "method.alpha_p": Change(1.0, "state", CAPFL),
    "method.rff_output_dim": Change(8, "clients", CAPFL),
    "method.mlp_hidden_dim": Change(2, "clients", CAPFL),
    "method.rank_floor": Change(1.0, "rounds", CAPFL),
    "method.rank_shares": Change([1.0, 0.5], "planned", {"method.name": "flexlora"}),
    "codec.values": Change("bf16", "planned"),
    "codec.density": Change(0.5, "planned"),
    "codec.down_values": Change("4bit", "planned"),
    "codec.down_density": Change(0.5, "planned"),
    "codec.mask": Change("top", "planned", {"codec.density": 0.1}),
    "codec.compensation": Change("off", "state", SPARSE),
    "privacy.secure_aggregation": Change("honest-server", "rounds", SOME | {"codec.values": "ternary"}),
    "privacy.clip": Change(0.05, "state", PRIVATE),
    "privacy.noise_multiplier": Change(2.0, "state", PRIVATE),
    "privacy.delta": Change(1e-3, "rounds", PRIVATE),
    "privacy.protects": Change("items", "state", PRIVATE),
    "evaluation.every": Change(1, "rounds"),
    "evaluation.batch_size": Change(1, "widest"),
    "evaluation.personal": Change(True, "adapters"),
    "evaluation.references": Change(["local"], "references"),
    "evaluation.metrics": Change(["token_accuracy"], "metrics", TEXT),
    "evaluation.generated": Change(2, "scores", TEXT),
    "evaluation.max_new_tokens": Change(1, "samples", TEXT),
    "evaluation.keep": Change("best", "clients", {"evaluation.personal": True}),
    "evaluation.patience": Change(
        1, "rounds", {"federation.rounds": 3, "evaluation.every": 1, "train.learning_rate": 9.0}
    ),
    "runtime.cache": Change("off", "cache"),
    "runtime.cache_gib": Change(1e-6, "cache"),
    "runtime.state_key": Change(lambda files: f"file:{files / 'key'}", "clients"),
    "runtime.threads": Change(2, "threads"),
    "runtime.workers": Change(2, "widest"),  # of the batches of this process
    "runtime.clients_per_pass": Change(2, "widest", {"evaluation.batch_size": 1}),
    "runtime.compile": Change(True, "compiled"),
    "runtime.own_metrics": Change(["os.path:join"], "allowed"),
}

ASIDE = [
    "out", "train.checkpointing", "evaluation.every", "evaluation.personal", "evaluation.references",
]  # fmt: skip
"""These say what is reported, where, and at what cost, never what is learnt. Each is seen in another part."""


# -- what can be observed of a run ---------------------------------------------------------------------


LOGITS = AdaptedModel.logits


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob(pattern)) if p.is_file()}


def tensors(blob: bytes) -> bytes:
    """Of a state: all but the header, which has digests of records with times in it, and the digest at the end."""
    return blob[8 + int.from_bytes(blob[:8], "little") : -DIGEST]


def observe(place: Path, settings: dict[str, object], how: str) -> dict[str, object]:
    """Run, or plan or deal out alone, and collect everything that a user could notice, in parts."""
    config = load_config(None, QUICK | {"out": str(place)} | settings)
    seen: dict[str, object] = {"error": None, "state": None}
    widest, recomputed, threads = list[int](), list[int](), torch.get_num_threads()
    compiled: list[AdaptedModel] = []

    def logits(model: AdaptedModel, ids: Any, *others: Any) -> Any:
        widest.append(ids.shape[0])
        return LOGITS(model, ids, *others)

    def again(*args: Any, **kwargs: Any) -> Any:
        recomputed.append(1)
        return checkpoint(*args, **kwargs)

    try:
        if how == "dealt":
            return seen | {"dealt": digest(*deal(config.data, config.partition, config.seed))}
        if how == "planned":
            return seen | {"planned": make_plan(config, calibration=False).parts}
        with (
            patch.object(AdaptedModel, "logits", logits),
            patch.object(lora, "checkpoint", again),
            patch.object(AdaptedModel, "compile", lambda model: compiled.append(model)),
            patch("os.urandom", stream(1, "the operating system").bytes),
        ):
            summary, out = run(config, serial)
    except CapflError as error:
        return seen | {"error": (type(error).__name__, str(error))}
    finally:
        seen["threads"] = torch.get_num_threads()
        torch.set_num_threads(threads)
    report = summary.to_json()
    shown = [list(sample.answers.values()) for own in read_samples(out).values() for sample in own]
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return seen | {
        "place": out.name,
        "metrics": summary.metrics,
        "scores": [row.scores for row in summary.rows],
        "samples": shown,
        "allowed": allowed(config),
        "widest": max(widest),
        "recomputed": bool(recomputed),
        "state": [tensors(blob) for blob in (contents(out, "state/server") | contents(out, "state/groups/*")).values()],
        "compiled": bool(compiled),
        "clients": contents(out, "state/clients/**/*"),
        "references": sorted(path.name for path in out.glob("references/*")),
        "adapters": contents(out, "adapters/**/*.safetensors"),
        "rounds": [json.dumps({k: v for k, v in record.items() if k != "seconds"}) for record in rounds],
        "cache": report["cache"],
    }


def allowed(config: Config) -> bool:
    """Would a site of this config call a function of the run's?"""
    named = config.evaluation.model_copy(update={"metrics": ("os.path:join",)})
    try:
        require_metrics(config.model_copy(update={"evaluation": named}))
    except CapflError:
        return False
    return True


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
    rows = [{"text": f"call {i}", "label": "ab"[i % 2], "site": "xyy"[i % 3]} for i in range(60)]
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [{"prompt": f"call {i}", "completion": f" {i}", "site": "xy"[i % 2]} for i in range(40)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    chats = [[{"role": role, "content": f"{role} {i}"} for role in ("user", "assistant") * 2] for i in range(20)]
    (folder / "chats.json").write_text(json.dumps([{"messages": chat} for chat in chats]))
    (folder / "key").write_text("5a" * 32)
    tiny.model(layers=3, seed=2).save_pretrained(folder / "other-model")
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(folder / "other-model")
    tiny.model().save_pretrained(folder / "dated-model")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tiny.CHAT
    tokenizer.save_pretrained(folder / "dated-model")
    return folder


def given(settings: dict[str, Value], files: Path) -> dict[str, object]:
    return {name: value(files) if callable(value) else value for name, value in settings.items()}


@pytest.fixture(scope="module")
def before(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, object]]:
    """What is seen without the change: many keys share one run."""
    seen: dict[str, dict[str, object]] = {}

    def of(key: str) -> dict[str, object]:
        needs = given(OWN | CHANGES[key].needs, files)
        shared = repr((sorted(needs.items()), how(key)))
        if shared not in seen:
            seen[shared] = observe(tmp_path_factory.mktemp("run") / "run", needs, how(key))
        return seen[shared]

    return of


def how(key: str) -> str:
    """How much has to be done to see the key's effect."""
    return "dealt" if key in DEALT else "planned" if CHANGES[key].part == "planned" else "run"


def sampled() -> Iterator[object]:
    """All keys that are seen in a plan or in who holds what; of those that need a run, the quick tests take a half."""
    runs = [key for key in CHANGES if key not in ASIDE and how(key) == "run"]
    for key in CHANGES:
        if key not in ASIDE:
            yield pytest.param(key, marks=pytest.mark.slow if key in runs[1::2] else ())


def test_the_table_has_every_key() -> None:
    assert set(CHANGES) == set(all_keys())


@pytest.mark.parametrize("key", sampled())
def test_a_key_has_an_effect(key: str, files: Path, tmp_path: Path, before: Callable[[str], dict[str, object]]) -> None:
    if key == "model.quantization":
        pytest.importorskip("bitsandbytes", reason="bases of 4 and 8 bits need bitsandbytes")
    change, plain = CHANGES[key], before(key)
    after = observe(tmp_path / "run", given(OWN | change.needs | {key: change.value}, files), how(key))
    assert plain.get(change.part) != after.get(change.part)
    assert (after["error"] is not None) == (change.part == "error")
    assert plain["error"] is None or key == "federation.on_failure"
    for name, message in {
        "model.device": f"model.device: {absent_device()} is not available",
        "partition.min_items": "fewer than partition.min_items = 21 items",
    }.items():
        assert key != name or message in str(after["error"])


def test_keys_that_change_nothing_that_is_learnt(
    files: Path, tmp_path: Path, before: Callable[[str], dict[str, object]]
) -> None:
    plain = before("seed")
    values = OWN | {key: CHANGES[key].value for key in ASIDE} | {"out": str(tmp_path / "elsewhere")}
    after = observe(tmp_path / "run", given(values, files), "run")
    assert plain["state"] == after["state"]
    for key in ASIDE:
        assert plain[CHANGES[key].part] != after[CHANGES[key].part], key
