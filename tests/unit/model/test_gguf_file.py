"""A GGUF LoRA file, read back with gguf and computed by llama.cpp's rule, adds what PEFT adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import CheckpointError, ConfigError, ModelError
from capfl.model import tiny
from capfl.model.base import Base
from capfl.model.export import save_adapter
from capfl.model.gguf_file import KINDS, save_gguf
from capfl.model.lora import AdaptedModel

Matrix = npt.NDArray[np.float64]

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def saved(model: AdaptedModel, folder: Path, ranks: dict[str, int]) -> Path:
    """Random factors in PEFT's files; modules have the ranks of the names that they end with."""
    generator, adapter = torch.Generator().manual_seed(0), {}
    for name, p in model.parameters.items():
        rank = next((rank for end, rank in ranks.items() if end in name), model.config.rank)
        shape = (rank, p.shape[1]) if name.endswith(".A") else (p.shape[0], rank)
        adapter[name] = torch.randn(shape, generator=generator)
    save_adapter(adapter, model.peft_config(), folder)
    return folder


def random_model(kind: str, folder: Path) -> AdaptedModel:
    """A random base of a kind, its config in a folder, adapted in all linear layers."""
    config = AutoConfig.for_model(kind, **SIZES)
    config.save_pretrained(folder)
    module = AutoModelForCausalLM.from_config(config).eval()
    return AdaptedModel(
        Base(str(folder), "", module, tiny.tokenizer(), torch.device("cpu")), LoraConfig(rank=4, alpha=6, layers="1")
    )


def added_by_peft(model: AdaptedModel, folder: Path) -> dict[str, Matrix]:
    """What stock PEFT adds to each weight, (d_out, d_in)."""
    module = AutoModelForCausalLM.from_config(model.base.module.config)  # type: ignore[arg-type]
    wrapped = peft.PeftModel.from_pretrained(module, str(folder))
    found = {}
    for name in model.targets:
        layer: Any = wrapped.get_submodule(f"base_model.model.{name}")
        delta = layer.get_delta_weight("default").detach().double().numpy()
        found[name] = delta.T if layer.fan_in_fan_out else delta
    return found


def added_by_runtime(path: Path) -> tuple[dict[str, Matrix], dict[str, object]]:
    """By llama.cpp's rule: each pair's product by alpha over the rank of its own tensors. And the file's words."""
    reader = gguf.GGUFReader(path)
    words = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: t.data.astype(np.float64) for t in reader.tensors}
    assert all(t.tensor_type == gguf.GGMLQuantizationType.F32 for t in reader.tensors)
    found = {}
    for name in {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors}:
        down, up = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        found[name] = float(words["adapter.lora.alpha"]) / up.shape[1] * (up @ down)  # type: ignore[arg-type]
    return found, words


def as_transformers(rows: Matrix, heads: int) -> Matrix:
    """Rows of q or k of a Llama in GGUF in transformers' order: of each head the even ones, then the odd ones."""
    per_head = np.split(rows, heads)
    return np.concatenate([np.concatenate([head[0::2], head[1::2]]) for head in per_head])


PLACES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
          "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
          "qkv_proj": "attn_qkv", "gate_up_proj": "ffn_up",
          "c_attn": "attn_qkv", "attn.c_proj": "attn_output", "c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_adds_what_peft_adds(kind: str, tmp_path: Path) -> None:
    model = random_model(kind, tmp_path / "base")
    folder = saved(model, tmp_path / "adapter", {"k_proj": 1, "down_proj": 2, "c_fc": 3, "o_proj": 7})
    save_gguf(folder, ModelConfig(path=str(tmp_path / "base")), tmp_path / "made" / "adapter.gguf")
    found, words = added_by_runtime(tmp_path / "made" / "adapter.gguf")
    assert words["general.type"] == "adapter"
    assert words["adapter.type"] == "lora"
    assert words["general.architecture"] == ("llama" if kind == "mistral" else kind.removesuffix("_text"))
    expected = added_by_peft(model, folder)
    assert len(found) == len(expected) >= 4
    heads = {"q_proj": 4, "k_proj": 2} if KINDS[kind].reorders else {}
    for name, delta in expected.items():
        own = next(key for key in reversed(PLACES) if name.endswith(key))
        runtime = found[f"blk.1.{PLACES[own]}.weight"]
        if own in heads:
            assert not np.allclose(runtime, delta, atol=1e-3)
            runtime = as_transformers(runtime, heads[own])
        np.testing.assert_allclose(runtime, delta, rtol=1e-4, atol=1e-4)
    assert list((tmp_path / "made").iterdir()) == [tmp_path / "made" / "adapter.gguf"]


def test_what_has_no_names_in_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("gpt_neox", tmp_path / "neox")
    folder, out = saved(model, tmp_path / "adapter", {}), tmp_path / "adapter.gguf"
    with pytest.raises(ModelError, match=r"neox is a gpt_neox model, .* \(known: llama, .*\); use --merged"):
        save_gguf(folder, ModelConfig(), out)
    monkeypatch.setitem(KINDS, "gpt_neox", KINDS["llama"])
    with pytest.raises(
        ModelError, match=r"gpt_neox.layers.1.attention.query_key_value has no name in GGUF; use --merged"
    ):
        save_gguf(folder, ModelConfig(), out)
    assert not out.exists()


def test_what_does_not_fit_or_is_in_the_way_is_refused(tmp_path: Path) -> None:
    model = AdaptedModel(
        Base("tiny", "", tiny.model(), tiny.tokenizer(), torch.device("cpu")), LoraConfig(layers="top:1")
    )
    folder, out = saved(model, tmp_path / "adapter", {}), tmp_path / "adapter.gguf"
    random_model("llama", tmp_path / "other")
    with pytest.raises(ModelError, match=r"model.layers.3.*does not fit .*other; give its own base as --model-path"):
        save_gguf(folder, ModelConfig(path=str(tmp_path / "other")), out)
    with pytest.raises(ModelError, match=r"holds no PEFT adapter.*; give one of those in it:\n  .*adapter$"):
        save_gguf(tmp_path, ModelConfig(), out)
    assert not out.exists()
    save_gguf(folder, ModelConfig(), out)
    with pytest.raises(ConfigError, match=" exists; choose another name"):
        save_gguf(folder, ModelConfig(), out)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*run the same command again"):
        save_gguf(folder, ModelConfig(), tmp_path / "file" / "adapter.gguf")
