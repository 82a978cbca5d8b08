"""The one job of ``flowertune.py``: the same rows, LoRA, steps and seeds for capfl and for Flower."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from capfl import adapter as algebra
from capfl.config import Config, load_config
from capfl.config.schema import LoraConfig
from capfl.data import deal, render
from capfl.data.replies import generate
from capfl.model import smollm2, tiny
from capfl.model.layers import adapter_shapes
from capfl.model.tokens import Example, encode
from capfl.types import Adapter

SITES = 4  # of the built-in data, whose rows are dealt out to clients
CODECS: dict[str, dict[str, Any]] = {
    "capfl-dense": {"codec.values": "fp32", "codec.density": 1.0},  # what Flower sends: every value, in float32
    "capfl": {},
}


@dataclass(frozen=True)
class Job:
    """What is to be computed.

    Attributes:
        place: folder of the clients' rows, ``CLIENT.jsonl``.
        rows: that each client trains on; by default as many as it takes in a round.
        threads: of torch in each process that trains.
    """

    place: str
    model: str = "tiny"
    layers: str = "top:20%"
    clients: int = 4
    rounds: int = 3
    steps: int = 4
    batch_size: int = 8
    rows: int = 32
    max_length: int = 256
    learning_rate: float = 1e-3
    seed: int = 0
    threads: int = 1

    @property
    def files(self) -> dict[str, Path]:
        """The rows of each client."""
        return {name: Path(self.place) / f"{name}.jsonl" for name in (f"client-{i:02d}" for i in range(self.clients))}

    @property
    def each(self) -> int:
        """Rows of a client: beside those that it trains on a tenth for validation and a tenth for the test."""
        return round(self.rows / 0.8)

    def write_rows(self) -> None:
        """Deal the built-in requests and replies out to the clients, one after the other."""
        items = generate(SITES, -(-self.clients * self.each // SITES), 0.0, self.seed)
        for i, path in enumerate(self.files.values()):
            own = items[i :: self.clients][: self.each]
            lines = [json.dumps({"prompt": item.question, "completion": item.completion}) + "\n" for item in own]
            path.write_text("".join(lines), encoding="utf-8")

    def config(self, out: Path | str | None = None, codec: dict[str, Any] | None = None) -> Config:
        """The job as capfl does it: FedAvg of A and B, without validation between rounds."""
        return load_config(None, {
            "seed": self.seed, "out": None if out is None else str(out), "model.path": self.model,
            "lora.layers": self.layers, "data.sets": [str(path) for path in self.files.values()],
            "data.max_length": self.max_length, "partition.kind": "by_task", "partition.validation": 0.1,
            "partition.test": 0.1, "partition.min_items": 3, "federation.rounds": self.rounds,
            "train.steps": self.steps, "train.batch_size": self.batch_size, "train.learning_rate": self.learning_rate,
            "method.name": "fedit", "evaluation.every": 0, "evaluation.personal": False, "evaluation.references": [],
            "evaluation.metrics": ["perplexity"], "runtime.threads": self.threads,
        } | (codec or {}))  # fmt: skip

    def lora(self) -> LoraConfig:
        return self.config().lora

    def examples(self, split: str) -> dict[str, list[Example]]:
        """The tokens of each client's rows of a split, as capfl's own runs have them."""
        config = self.config()
        items, splits = deal(config.data, config.partition, config.seed)
        tokenizer = tokenizer_of(self.model)

        def encoded(indices: list[int]) -> Iterator[Example]:
            for i in indices:
                yield encode(render(items[i], "letter"), "letter", tokenizer, self.max_length)

        return {client: list(encoded(getattr(own, split))) for client, own in sorted(splits.items())}

    def start(self, module: nn.Module) -> Adapter:
        """The values that A and B have before the first round, the same for all."""
        return algebra.drawn(adapter_shapes(module, self.lora()), self.seed)


@cache
def tokenizer_of(model: str) -> Any:
    if model == "tiny":
        return tiny.tokenizer()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_folder(model))


def base_of(model: str) -> nn.Module:
    """The base in float32, loaded anew, as transformers alone does it."""
    if model == "tiny":
        return tiny.model()
    from transformers import AutoModelForCausalLM

    module: nn.Module = AutoModelForCausalLM.from_pretrained(_folder(model), dtype=torch.float32)
    return module


def _folder(model: str) -> str:
    return str(smollm2.folder()) if model == "smollm2" else model


def to_peft(adapter: Adapter) -> dict[str, torch.Tensor]:
    """An adapter under PEFT's names: ``MODULE.A`` becomes ``base_model.model.MODULE.lora_A.weight``."""
    return {f"base_model.model.{name[:-2]}.lora_{name[-1]}.weight": t for name, t in adapter.items()}


def from_peft(state: dict[str, torch.Tensor]) -> Adapter:
    """The reverse of ``to_peft``."""
    names = {name: name.removeprefix("base_model.model.").removesuffix(".weight") for name in state}
    return {names[name].replace(".lora_A", ".A").replace(".lora_B", ".B"): t for name, t in state.items()}
