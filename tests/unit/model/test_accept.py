"""What a config says of a model: which can be a base, and how long its texts may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from capfl.config.schema import ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.model import tiny
from capfl.model.accept import auto_class, check_positions, positions
from capfl.model.base import load_base, skeleton


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("t5", {}, r"m \(t5\) is an encoder-decoder, whose decoder reads .*; give a causal language model"),
        ("whisper", {}, r"m \(whisper\) is an encoder-decoder"),
        ("bert", {}, r"m \(bert\) is an encoder: every token sees those that follow it; give a causal"),
        ("roberta", {}, r"m \(roberta\) is an encoder:"),
        (
            "llama",
            {"architectures": ["LlamaForSequenceClassification"]},
            "m is a LlamaForSequenceClassification, whose",
        ),
        ("qwen2", {"architectures": ["Qwen2ForRewardModel"]}, "m is a Qwen2ForRewardModel, whose head predicts no"),
        (
            "bert",
            {"architectures": ["BertForMaskedLM"]},
            "m is a .*; give the causal language model that it was made from",
        ),
        ("vit", {}, "m is of the type vit, of which transformers .* has no causal"),
    ],
)
def test_what_is_no_causal_language_model_is_refused_by_name(kind: str, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.path: {said}"):
        auto_class(AutoConfig.for_model(kind, **settings), "m")


@pytest.mark.parametrize(
    ("kind", "settings", "found"),
    [
        ("llama", {"architectures": ["LlamaForCausalLM"]}, AutoModelForCausalLM),
        ("bert", {"is_decoder": True}, AutoModelForCausalLM),
        ("gemma3", {}, AutoModelForCausalLM),
        ("qwen2_vl", {}, AutoModelForImageTextToText),
        ("llava", {"architectures": ["LlavaForConditionalGeneration"]}, AutoModelForImageTextToText),
    ],
)
def test_the_class_that_loads_a_base(kind: str, settings: dict[str, object], found: type) -> None:
    assert auto_class(AutoConfig.for_model(kind, **settings), "m") is found


@pytest.mark.parametrize(
    ("kind", "settings", "limit"),
    [
        ("llama", {"max_position_embeddings": 128}, 128),
        ("gpt2", {"n_positions": 64}, 64),
        ("mpt", {"max_seq_len": 96}, 96),
        ("mistral", {"max_position_embeddings": 512, "sliding_window": 16}, 512),  # a window limits no positions
        ("gemma3", {"text_config": {"model_type": "gemma3_text", "max_position_embeddings": 72}}, 72),
        ("mamba", {}, None),
        ("xlnet", {}, None),
        # rotary positions that are scaled: the config says the number before scaling, or the one after it
        ("qwen2", {"max_position_embeddings": 100, "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "rope_theta": 1e4}}, 400),
        ("llama", {"max_position_embeddings": 400, "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100, "rope_theta": 1e4}}, 400),
        ("llama", {"max_position_embeddings": 100, "rope_parameters": {
            "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, 200),
        ("llama", {"max_position_embeddings": 100, "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 50, "rope_theta": 1e4,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0}}, 100),  # already scaled
    ],
)  # fmt: skip
def test_positions(kind: str, settings: dict[str, object], limit: int | None) -> None:
    config = AutoConfig.for_model(kind, **settings)
    assert positions(config) == limit
    check_positions(config, limit or 10**9, "m")
    if limit:
        message = rf"data\.max_length: rows may have {limit + 1} tokens, and m has positions for {limit}; use data.max"
        with pytest.raises(ConfigError, match=message):
            check_positions(config, limit + 1, "m")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_refused_before_its_weights_are_looked_for(folder: Path) -> None:
    AutoConfig.for_model("bert").save_pretrained(folder)
    for load in (load_base, skeleton):
        with pytest.raises(ModelError, match=r"is an encoder: every token"):
            load(ModelConfig(path=str(folder), device="cpu"))


def test_code_of_a_model_is_never_run_and_nobody_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a model that transformers does not know; where it knows the type, its own code is used in place of theirs."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "own.py").write_text("raise SystemExit('run')")
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    for load in (load_base, skeleton):
        with pytest.raises(ModelError, match=r"brings Python code of its own, which capfl never runs; give a copy"):
            load(ModelConfig(path=str(folder), device="cpu"))
    tiny.model(layers=1).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    assert load_base(ModelConfig(path=str(folder), device="cpu")).name == str(folder)
