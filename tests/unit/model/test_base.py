"""Loading a base model: frozen, and a clear answer when it cannot be had."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from capfl.config.schema import CodecConfig, MethodConfig, ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.methods import build
from capfl.model import tiny
from capfl.model.base import _digest, load_base, pick_device
from capfl.roles.agreement import Agreement

IDS = torch.arange(8).reshape(1, 8)
ABSENT = "mps" if torch.cuda.is_available() else "cuda"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "saved"
    tiny.model(layers=2, seed=9).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@torch.no_grad()
def test_a_folder_is_loaded_frozen_with_its_weights_and_tokenizer(folder):
    state = torch.get_rng_state()
    base = load_base(ModelConfig(path=str(folder), device="cpu"))
    assert torch.equal(base.module(IDS).logits, tiny.model(layers=2, seed=9)(IDS).logits)
    assert torch.equal(torch.get_rng_state(), state)
    assert base.tokenizer("a</s>")["input_ids"] == tiny.tokenizer()("a</s>")["input_ids"]
    assert base.tokenizer.chat_template == tiny.CHAT
    assert not any(p.requires_grad for p in base.module.parameters())
    assert not base.module.training
    assert (base.name, base.device) == (str(folder), torch.device("cpu"))
    half = load_base(ModelConfig(path=str(folder), device="cpu", dtype="bfloat16"))
    assert {p.dtype for p in half.module.parameters()} == {torch.bfloat16}


def test_a_digest_is_of_the_weights_wherever_they_lie_in_float32_and_bfloat16(tmp_path):
    """Sites whose bases have other weights do not share a run: the digest is part of every message's schema."""
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    config = ModelConfig(path="tiny", device="cpu")
    base = load_base(config)
    for path, dtype in (("tiny", "bfloat16"), (str(tmp_path), "float32")):
        assert load_base(ModelConfig(path=path, device="cpu", dtype=dtype)).digest == base.digest
    assert base.digest.startswith("bfloat16:")
    assert load_base(ModelConfig(path="tiny", device="cpu", dtype="float16")).digest.startswith("float16:")
    weight = base.module.get_submodule("model.layers.1.self_attn.v_proj").weight
    with torch.no_grad():  # as an adapter that was merged into it
        weight += 0.02 * torch.outer(torch.ones(16), torch.ones(32))
    other = _digest(base.module, config)
    assert other != base.digest
    assert Agreement(build(MethodConfig()), CodecConfig(), {}, other).schema != (
        Agreement(build(MethodConfig()), CodecConfig(), {}, base.digest).schema
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("./nowhere", "there is no folder ./nowhere; give a folder, a Hub name"),
        ("a/b/c", "there is no folder a/b/c; give a folder, a Hub name"),
        ("a" * 300, "'a*' can be no folder: File name too long; give a folder"),
        ("~nobody-here/x", "'~nobody-here/x' can be no folder: Could not determine home directory"),
        ("no-such-org/no-such-model", r"cannot load 'no-such-org/no-such-model' as a .*\nGive smollm2, tiny, a folder"),
    ],
)
def test_a_model_that_is_not_there(path, said):
    with pytest.raises(ModelError, match=rf"model\.path: {said}"):
        load_base(ModelConfig(path=path, device="cpu"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("config", r"cannot load '.*' as a causal language model: .*\nGive smollm2"),
        ("weights", r"cannot load the weights of '.*': .*\nIf they are damaged, copy them again\. Or give smollm2"),
        ("shapes", r"cannot load the weights of '.*': its config\.json says other shapes than its weights have\n"),
        ("tokenizer", r"cannot load the tokenizer of '.*': .*\nPut its files beside the weights: tokenizer\.json and"),
        ("adapter", r".* has an adapter in it \(adapter_config\.json\), which is no base; give the model that the ada"),
    ],
)
def test_a_folder_that_holds_no_whole_model(folder, damage, said):
    for file in list(folder.iterdir()):
        if damage == "tokenizer" and file.name.startswith(("tokenizer", "special", "chat")):
            file.unlink()
    if damage == "config":
        (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"not tensors")
    if damage == "shapes":
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace('"vocab_size": 259', '"vocab_size": 300'))
    if damage == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=rf"model\.path: {said}"):
        load_base(ModelConfig(path=str(folder), device="cpu"))


def test_weights_that_are_missing_are_not_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(ModelConfig(path=str(folder), device="cpu"))


def test_layers_that_a_config_does_not_know_are_not_left_out(folder):
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(ModelError, match=r"more layers than its config\.json says, model\.layers\.1\.input_layern"):
        load_base(ModelConfig(path=str(folder), device="cpu"))


def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match=rf"model.device: {ABSENT} is not available on this machine \(found: .*cpu"):
        pick_device(ABSENT)
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
