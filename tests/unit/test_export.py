"""Adapters on disk: what stock PEFT makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from capfl import adapter as algebra
from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ModelError
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.export import load_adapter, save_adapter
from capfl.model.kinds import HARMLESS, NAMES
from capfl.model.lora import AdaptedModel
from capfl.scoring import load
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


def trained(folder: Path, **settings: object) -> torch.Tensor:
    """Have PEFT save an adapter as training could have left it. Returns what PEFT makes of it."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | settings)
    wrapped = peft.get_peft_model(tiny.model(), config)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.add_(torch.randn_like(p))
    wrapped.save_pretrained(folder)
    return stock(folder)


MIXED = r".*(1\.self_attn\.q_proj|1\.mlp\.up_proj|3\.mlp\.down_proj)"  # no layers times targets


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}, {"rank_pattern": {"v_proj": 2}},
        {"use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 7}, "alpha_pattern": {"v_proj": 5}},
        {"target_modules": MIXED}, {"layers_to_transform": [0, 2], "exclude_modules": ["layers.2.self_attn.q_proj"]},
        {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "mica"},
    ],
)  # fmt: skip
def test_adapters_of_others_give_the_logits_that_they_have_in_peft(tmp_path: Path, settings: dict[str, object]) -> None:
    expected = trained(tmp_path, **settings)
    loaded = load(tmp_path, model="tiny", device="cpu")
    torch.testing.assert_close(ours(loaded.model, loaded.adapter), expected)


def test_transposed_weights_of_others(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=tiny.VOCAB, n_layer=2, n_embd=32, n_head=4, bos_token_id=0, eos_token_id=0)
    base, place = tmp_path / "base", tmp_path / "adapter"
    GPT2LMHeadModel(config).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    wrapped = peft.get_peft_model(
        GPT2LMHeadModel.from_pretrained(base),
        peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False),
    )
    wrapped.save_pretrained(place)
    with torch.no_grad():
        expected = wrapped.eval()(input_ids=IDS).logits
    loaded = load(place, model=str(base), device="cpu")
    torch.testing.assert_close(ours(loaded.model, loaded.adapter), expected)


@pytest.mark.filterwarnings("ignore")  # of PEFT, while it trains
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"init_lora_weights": "pissa"},
            r"started from the base's own weights \(pissa\).*merge_and_unload, and give that",
        ),
        ({"init_lora_weights": "pissa_niter_2"}, r"\(pissa_niter_2\).*path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, r"\(olora\)"),
        ({"use_dora": True}, "holds DoRA, .*; merge it into its base with PEFT's"),
        ({"alora_invocation_tokens": [3, 4], "task_type": "CAUSAL_LM"}, "holds aLoRA, .*; use it with PEFT itself"),
        ({"modules_to_save": ["lm_head"]}, r"whole modules beside it \(modules_to_save\)"),
        ({"bias": "lora_only"}, r"biases of the base \(bias = lora_only\)"),
        ({"lora_bias": True}, r"LoRA with biases \(lora_bias\)"),
        ({"layer_replication": [[0, 3], [2, 4]]}, "repeated layers"),
        ({"trainable_token_indices": [1, 2]}, "embeddings of some tokens"),
        ({"target_modules": ["lm_head", "q_proj"]}, "lm_head.*is not a factor of a linear layer; merge"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.*is not a factor of a linear layer; merge"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    trained(tmp_path, **settings)
    with pytest.raises(ModelError, match=said):
        load(tmp_path, model="tiny", device="cpu")


def test_a_setting_of_a_newer_peft_is_refused_unless_it_is_off(tmp_path: Path) -> None:
    trained(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"use_new": None}))
    load_adapter(tmp_path)
    for change, said in (
        ({"use_new": True}, "LoRA with use_new = True, which this version of capfl does not know"),
        ({"peft_type": "LOHA"}, "holds a LOHA adapter; capfl reads LoRA only: merge it"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
    ):
        file.write_text(json.dumps(settings | change))
        with pytest.raises(ModelError, match=said):
            load_adapter(tmp_path)


def test_every_setting_of_peft_is_judged() -> None:
    """When this fails, a newer PEFT has more kinds of LoRA: say of each in ``model.kinds`` whether scores stay."""
    assert set(peft.LoraConfig(target_modules=["x"]).to_dict()) <= HARMLESS | NAMES.keys() | {"bias"}


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no PEFT adapter"):
        load_adapter(tmp_path)
    model = adapted()
    save_adapter(model.initial_adapter(0), model.peft_config(), tmp_path)
    config = tmp_path / "adapter_config.json"
    good = json.loads(config.read_text())
    endless = r"(\w*\.?)*!"  # for which Python would look until the end of days
    for key, values in {
        "r": (0, "x", None), "lora_alpha": (0, "x", None, 10**400), "base_model_name_or_path": (5,),
        "alpha_pattern": (5, {"(": 1}, {endless: 1}, {"q": "x"}),
    }.items():  # fmt: skip
        for value in values:
            config.write_text(json.dumps(good | {key: value}))
            with pytest.raises(ModelError, match=rf"damaged[^$]*{key}"):
                load_adapter(tmp_path)
    for text in ("[]", "null", "[" * 10**5):
        config.write_text(text)
        with pytest.raises(ModelError, match="damaged"):
            load_adapter(tmp_path)
    config.write_text(json.dumps(good | {"r": 10**9}))  # its tensors have the ranks that they have
    assert set(algebra.ranks(load(tmp_path, model="tiny").adapter).values()) == {8}
    config.write_text(json.dumps(good))
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
