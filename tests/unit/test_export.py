"""Adapters on disk: what stock PEFT makes of them."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ModelError
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.export import PatchFactors, load_adapter, save_adapter
from capfl.model.lora import AdaptedModel
from support import tiny_run


@pytest.mark.parametrize(("alpha", "method"), [(4.0, "fedit"), (64.0, "fedit"), (4.0, "fedex-lora"), (4.0, "flexlora")])
def test_stock_peft_loads_every_adapter_of_a_run_to_the_same_logits(runs: Path, alpha: float, method: str) -> None:
    tiny_run(runs, lora__alpha=alpha, train__learning_rate=0.05, method__name=method)
    ids = torch.arange(1, 13).reshape(2, 6)
    folders = [runs / "adapters" / "global", *sorted((runs / "adapters" / "clients").iterdir())]
    assert len(folders) == 3
    logits = []
    for folder in folders:
        adapter, _ = load_adapter(folder)
        rank = max(algebra.ranks(adapter).values())
        ours = AdaptedModel(
            load_base(ModelConfig(path="tiny")), LoraConfig(layers="top:2", alpha=alpha * rank / 8, rank=rank)
        )
        ours.write(algebra.padded(adapter, ours.initial_adapter(0)))
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


def test_a_module_may_have_a_rank_of_its_own(tmp_path: Path) -> None:
    """Ranks that are not used are not saved, and stock PEFT makes the same logits of what is."""
    ours = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig(layers="top:2", alpha=4.0))
    generator = torch.Generator().manual_seed(0)
    adapter = {name: torch.randn(t.shape, generator=generator) for name, t in ours.initial_adapter(0).items()}
    first, second, *_ = algebra.ranks(adapter)
    adapter[f"{first}.B"][:, [0, 2, 5]] = 0
    adapter[f"{second}.A"][:] = 0
    save_adapter(algebra.pruned(adapter), ours.peft_config(), tmp_path)
    back, config = load_adapter(tmp_path)
    assert (config.rank_pattern, config.alpha_pattern) == ({first: 5, second: 1}, {first: 2.5, second: 0.5})
    assert set(list(algebra.ranks(back).values())[2:]) == {8}

    stock = peft.PeftModel.from_pretrained(tiny.model(), str(tmp_path)).eval()
    ids = torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        expected = stock(input_ids=ids).logits
        for same in (adapter, algebra.padded(back, adapter)):
            ours.write(same)
            found = ours.logits(ids, torch.arange(12), ours.lower(ids)).reshape(2, 6, -1)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "changes", [{"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}, {"rank_pattern": {"v_proj": 2}}]
)
def test_an_adapter_that_peft_scales_otherwise(tmp_path: Path, changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **changes)
    stock = peft.get_peft_model(tiny.model(), config)
    for name, p in stock.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    stock.save_pretrained(tmp_path)
    adapter, saved = load_adapter(tmp_path)
    model = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig(rank=saved.r, alpha=saved.lora_alpha))
    model.write(algebra.padded(adapter, model.initial_adapter(0)))
    ids = torch.arange(1, 13).reshape(2, 6)
    with torch.no_grad():
        found = model.logits(ids, torch.arange(12)).reshape(2, 6, -1)
        torch.testing.assert_close(found, stock.eval()(input_ids=ids).logits)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no PEFT adapter"):
        load_adapter(tmp_path)
    model = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig())
    save_adapter(model.initial_adapter(0), model.peft_config(), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="damaged"):
        load_adapter(tmp_path)


# -- a patch of the base --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank_of_patch", [0, 3, 12, 16])
def test_stock_peft_has_the_patch_as_more_ranks(tmp_path: Path, rank_of_patch: int) -> None:
    """A patch of low rank costs as many ranks, one of full rank the matrix itself; with logits of the patched base."""
    ours = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig(layers="top:2", alpha=4.0))
    generator = torch.Generator().manual_seed(0)
    adapter = {name: 0.3 * torch.randn(t.shape, generator=generator) for name, t in ours.initial_adapter(0).items()}
    for name, t in algebra.blank(adapter).items():
        left, right = torch.randn(len(t), rank_of_patch), torch.randn(rank_of_patch, t.shape[1])
        adapter[name] = 0.1 * left @ right
    save_adapter(adapter, ours.peft_config(), tmp_path)
    back, _ = load_adapter(tmp_path)
    for module, rank in algebra.ranks(back).items():
        smaller = min(adapter[f"{module}.W"].shape)
        assert rank == min(8 + min(rank_of_patch, smaller), smaller)
        whole = adapter[f"{module}.B"].double() @ adapter[f"{module}.A"].double() + adapter[f"{module}.W"].double()
        got = back[f"{module}.B"].double() @ back[f"{module}.A"].double()
        assert float((whole - got).norm() / whole.norm()) < 1e-6
    ids = torch.arange(1, 13).reshape(2, 6)
    ours.write(adapter)
    with torch.no_grad():
        found = ours.logits(ids, torch.arange(12), ours.lower(ids)).reshape(2, 6, -1)
        expected = peft.PeftModel.from_pretrained(tiny.model(), str(tmp_path)).eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected)


def test_a_patch_alone_is_no_more_ranks_than_it_has(tmp_path: Path) -> None:
    ours = AdaptedModel(load_base(ModelConfig(path="tiny")), LoraConfig(layers="top:2"))
    adapter = ours.initial_adapter(0)
    module = ours.targets[0]
    adapter[f"{module}.W"] = torch.outer(torch.arange(32.0), torch.ones(32))
    save_adapter(algebra.pruned(adapter), ours.peft_config(), tmp_path)
    back, _ = load_adapter(tmp_path)
    assert set(algebra.ranks(back).values()) == {1}
    torch.testing.assert_close(back[f"{module}.B"] @ back[f"{module}.A"], adapter[f"{module}.W"])


def test_factors_of_a_patch_are_found_once(tmp_path: Path) -> None:
    factors, patch = PatchFactors(), torch.randn(5, 4)
    first = factors.of("m", patch)
    assert factors.of("m", patch.clone())[0] is first[0]
    assert factors.of("m", 2 * patch)[0] is not first[0]
