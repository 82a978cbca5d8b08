"""Adapters on disk: what stock PEFT makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ModelError
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.export import load_adapter, save_adapter
from capfl.model.lora import AdaptedModel
from capfl.types import Adapter
from support import tiny_run

IDS = torch.arange(1, 13).reshape(2, 6)


def adapted(**settings: object) -> AdaptedModel:
    config = LoraConfig.model_validate({"layers": "top:2", "targets": ("q_proj", "v_proj"), "alpha": 4.0} | settings)
    return AdaptedModel(load_base(ModelConfig(path="tiny", device="cpu")), config)


def wandered(model: AdaptedModel) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(t.shape, generator=generator) for name, t in model.parameters.items()}


@torch.no_grad()
def ours(model: AdaptedModel, adapter: Adapter) -> torch.Tensor:
    model.write(adapter)
    return model.logits(IDS, torch.arange(12)).reshape(2, 6, -1)


@torch.no_grad()
def stock(folder: Path) -> torch.Tensor:
    return peft.PeftModel.from_pretrained(tiny.model(), str(folder)).eval()(input_ids=IDS).logits


def test_stock_peft_loads_every_adapter_of_a_run_to_the_same_logits(runs: Path) -> None:
    alpha = 4.0
    tiny_run(runs, lora__alpha=alpha, train__learning_rate=0.05, method__name="fedex-lora")
    folders = [runs / "adapters" / "global", *sorted((runs / "adapters" / "clients").iterdir())]
    assert len(folders) == 3
    logits = []
    for folder in folders:
        adapter, _ = load_adapter(folder)
        rank = max(algebra.ranks(adapter).values())
        model = adapted(alpha=alpha * rank / 8, rank=rank)
        logits.append(stock(folder))
        torch.testing.assert_close(ours(model, algebra.padded(adapter, model.initial_adapter(0))), logits[-1])
    assert not torch.equal(logits[0], logits[1])


def test_save_and_load_are_inverse_and_equal_adapters_are_equal_files(tmp_path: Path) -> None:
    model = adapted()
    adapter = model.initial_adapter(3)
    save_adapter(adapter, model.peft_config(), tmp_path)
    back, config = load_adapter(tmp_path)
    assert back.keys() == adapter.keys()
    assert all(torch.equal(back[name], t) for name, t in adapter.items())
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (8, 4, "tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(model.targets)  # PEFT has a set, which every process writes in another order


def test_a_module_may_have_a_rank_of_its_own(tmp_path: Path) -> None:
    """Ranks that are not used are not saved, and stock PEFT makes the same logits of what is."""
    model = adapted()
    adapter = wandered(model)
    first, second, *_ = algebra.ranks(adapter)
    adapter[f"{first}.B"][:, [0, 2, 5]] = 0
    adapter[f"{second}.A"][:] = 0
    save_adapter(algebra.pruned(adapter), model.peft_config(), tmp_path)
    back, config = load_adapter(tmp_path)
    assert (config.rank_pattern, config.alpha_pattern) == ({first: 5, second: 1}, {first: 2.5, second: 0.5})
    assert set(list(algebra.ranks(back).values())[2:]) == {8}
    for same in (adapter, algebra.padded(back, adapter)):
        torch.testing.assert_close(ours(model, same), stock(tmp_path))


@pytest.mark.parametrize(
    "changes", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}, {"rank_pattern": {"v_proj": 2}}]
)
def test_an_adapter_that_peft_scales_otherwise(tmp_path: Path, changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **changes)
    wrapped = peft.get_peft_model(tiny.model(), config)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    wrapped.save_pretrained(tmp_path)
    adapter, saved = load_adapter(tmp_path)
    model = adapted(layers="all", rank=saved.r, alpha=saved.lora_alpha)
    with torch.no_grad():
        expected = wrapped.eval()(input_ids=IDS).logits
    torch.testing.assert_close(ours(model, algebra.padded(adapter, model.initial_adapter(0))), expected)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no PEFT adapter"):
        load_adapter(tmp_path)
    model = adapted()
    save_adapter(model.initial_adapter(0), model.peft_config(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="damaged"):
        load_adapter(tmp_path)


def test_stock_peft_has_a_patch_of_the_base_as_the_whole_matrix(tmp_path: Path) -> None:
    """With the logits of the patched base. A module without a patch keeps its ranks."""
    model = adapted()
    adapter = wandered(model)
    first, *others = model.targets
    for module in others:
        shape = len(adapter[f"{module}.B"]), adapter[f"{module}.A"].shape[1]
        adapter[f"{module}.W"] = 0.1 * torch.randn(shape)
    adapter[f"{first}.W"] = torch.zeros(32, 32)
    save_adapter(adapter, model.peft_config(), tmp_path)
    back, _ = load_adapter(tmp_path)
    assert algebra.ranks(back) == {first: 8, **{m: min(adapter[f"{m}.W"].shape) for m in others}}
    for module in model.targets:
        whole = adapter[f"{module}.B"].double() @ adapter[f"{module}.A"].double() + adapter[f"{module}.W"].double()
        got = back[f"{module}.B"].double() @ back[f"{module}.A"].double()
        assert float((whole - got).norm() / whole.norm()) < 1e-6
    torch.testing.assert_close(ours(model, adapter), stock(tmp_path))
