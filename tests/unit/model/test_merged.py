"""A merged folder is a model of its own with the adapter's logits."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

from capfl import adapter as algebra
from capfl.config.data import DataConfig
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import CheckpointError, ConfigError, ModelError
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.card import card_of
from capfl.model.export import save_adapter
from capfl.model.lora import AdaptedModel
from capfl.model.merged import save_merged

IDS = torch.arange(1, 13).reshape(2, 6)


def base_folder(kind: str, folder: Path) -> Path:
    if kind == "llama":
        module = tiny.model(2)
        module.generation_config = GenerationConfig(eos_token_id=[7, 257])
    else:
        module = GPT2LMHeadModel(GPT2Config(vocab_size=tiny.VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    module.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def saved(base: Path, folder: Path) -> tuple[Path, torch.Tensor]:
    """An adapter of unequal ranks, with its card, and its logits."""
    model = AdaptedModel(load_base(ModelConfig(path=str(base), device="cpu")), LoraConfig(rank=4, layers="all"))
    generator = torch.Generator().manual_seed(0)
    adapter = {name: 0.3 * torch.randn(p.shape, generator=generator) for name, p in model.parameters.items()}
    ranks = torch.ones(sum(algebra.ranks(adapter).values()), dtype=torch.bool)
    ranks[:3] = False
    adapter = algebra.without(adapter, ~ranks)
    save_adapter(algebra.pruned(adapter), model.peft_config(), folder, card_of(model.base, DataConfig(), []))
    model.write(adapter)
    with torch.no_grad():
        return folder, model.logits(IDS, torch.arange(12)).reshape(2, 6, -1)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_merged_model_has_the_adapters_logits(kind: str, tmp_path: Path) -> None:
    base = base_folder(kind, tmp_path / "base")
    folder, logits = saved(base, tmp_path / "adapter")
    out = tmp_path / "some" / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that a user can do something about
        save_merged(folder, ModelConfig(device="cpu"), out)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(out)
        alone = AutoModelForCausalLM.from_pretrained(base)
        torch.testing.assert_close(merged(input_ids=IDS).logits, logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(alone(input_ids=IDS).logits, logits, atol=0.1)
    assert not [name for name in merged.state_dict() if "lora" in name]
    if kind == "llama":
        assert merged.generation_config.eos_token_id == [7, 257]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == tiny.CHAT
    assert list(tokenizer("hé")["input_ids"]) == list(tiny.tokenizer()("hé")["input_ids"])
    assert os.stat(out).st_mode & 0o777 == os.stat(tmp_path / "some").st_mode & 0o777
    assert len({os.stat(path).st_mode & 0o777 for path in out.iterdir()}) == 1  # the weights too may be read by others
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    with pytest.raises(ConfigError, match="is not empty; choose another folder"):
        save_merged(folder, ModelConfig(device="cpu"), out)


def test_half_precision_stays_half(tmp_path: Path) -> None:
    folder, _ = saved(base_folder("llama", tmp_path / "base"), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()  # an empty folder may be there
    save_merged(folder, ModelConfig(device="cpu", dtype="bfloat16"), tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    folder, _ = saved(base_folder("llama", tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="leave quantization out"):
        save_merged(folder, ModelConfig(device="cpu", quantization="8bit"), tmp_path / "merged")
    with pytest.raises(ModelError, match="tiny has other weights"):
        save_merged(folder, ModelConfig(device="cpu", path="tiny"), tmp_path / "merged")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*run the same command again"):
        save_merged(folder, ModelConfig(device="cpu"), tmp_path / "file" / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "file"]
