"""Adapters on disk: what stock PEFT makes of them."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ModelError
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.export import load_adapter, save_adapter
from capfl.model.lora import AdaptedModel
from support import tiny_run


@pytest.mark.parametrize("alpha", [4.0, 64.0])
def test_stock_peft_loads_every_adapter_of_a_run_to_the_same_logits(runs: Path, alpha: float) -> None:
    tiny_run(runs, lora__alpha=alpha, train__learning_rate=0.05)
    ids = torch.arange(1, 13).reshape(2, 6)
    folders = [runs / "adapters" / "global", *sorted((runs / "adapters" / "clients").iterdir())]
    assert len(folders) == 3
    logits = []
    for folder in folders:
        adapter, _ = load_adapter(folder)
        ours = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig(layers="top:2", alpha=alpha))
        ours.write(adapter)
        stock = peft.PeftModel.from_pretrained(tiny.model(), str(folder)).eval()
        with torch.no_grad():
            expected = stock(input_ids=ids).logits
            found = ours.logits(ids, torch.arange(12), ours.lower(ids)).reshape(2, 6, -1)
        torch.testing.assert_close(found, expected)
        logits.append(expected)
    assert not torch.equal(logits[0], logits[1])


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    model = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig())
    adapter = model.initial_adapter(3)
    save_adapter(adapter, model.peft_config(), tmp_path / "a")
    back, config = load_adapter(tmp_path / "a")
    assert back.keys() == adapter.keys()
    assert all(torch.equal(back[name], t) for name, t in adapter.items())
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (8, 16, "tiny")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no PEFT adapter"):
        load_adapter(tmp_path)
    model = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig())
    save_adapter(model.initial_adapter(0), model.peft_config(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="damaged"):
        load_adapter(tmp_path)
