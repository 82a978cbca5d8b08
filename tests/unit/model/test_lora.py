"""The adapter in the model: written whole or not at all, computed in two parts or one, with the same logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ModelError
from capfl.model import tiny
from capfl.model.base import Base, load_base
from capfl.model.lora import AdaptedModel

IDS = torch.arange(3, 17).reshape(2, 7)
ALL = torch.arange(14)


def values(model: AdaptedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.parameters.items()}


# -- the adapter's values ------------------------------------------------------------------------------


def test_names_shapes_and_what_asks_for_gradients(adapt):
    model = adapt(fresh=True, dropout=0.25)
    assert {name: tuple(p.shape) for name, p in model.parameters.items()} == {
        f"model.layers.{layer}.self_attn.{target}_proj.{factor}": shape
        for layer in (2, 3)
        for target, out in (("q", 32), ("v", 16))
        for factor, shape in (("A", (2, 32)), ("B", (out, 2)))
    }
    assert model.lowest == 2
    trainable = {id(p) for p in model.base.module.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in model.parameters.values()}
    config = model.peft_config()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 8.0, 0.25)
    assert (config.base_model_name_or_path, len(config.target_modules)) == ("tiny", 4)


def test_the_initial_adapter_is_bounded_zero_in_b_and_a_function_of_the_seed(adapt):
    model = adapt()
    first, other = model.initial_adapter(0), model.initial_adapter(1)
    many = adapt(layers="all").initial_adapter(0)  # what a layer has does not depend on which others are adapted
    for name, t in first.items():
        assert torch.equal(t, many[name])
        if name.endswith(".A"):
            assert 0.5 / math.sqrt(32) < float(t.abs().max()) <= 1 / math.sqrt(32)
            assert not torch.equal(t, other[name])
        else:
            assert not t.any()
    matrices = [t for name, t in first.items() if name.endswith(".A")]
    assert not any(torch.equal(matrices[0], t) for t in matrices[1:])  # each from a stream of its own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.layers.2.self_attn.q_proj.A": None}, r"'model.layers.2.*q_proj.A': shape missing, .* \(2, 32\)"),
        ({"x.A": torch.zeros(1)}, r"'x.A': shape \(1,\), the model expects no such tensor"),
        ({"model.layers.3.self_attn.v_proj.B": torch.zeros(2, 16)}, r"shape \(2, 16\), the model expects \(16, 2\)"),
    ],
)  # fmt: skip
def test_an_adapter_is_copied_whole_or_refused_whole(adapt, wander, change, said):
    model = adapt()
    adapter = wander(model)
    model.write(adapter)
    assert all(torch.equal(t, adapter[name]) for name, t in values(model).items())
    before = values(model)
    wrong = {name: t for name, t in (wander(model, 1) | change).items() if t is not None}
    with pytest.raises(ModelError, match=f"{said}; check rank, targets and layers"):
        model.write(wrong)
    next(iter(adapter.values())).add_(1)
    assert all(torch.equal(before[name], t) for name, t in values(model).items())


# -- the forward pass -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("alpha", [2.0, 8.0])
def test_an_adapter_adds_alpha_over_r_times_b_a(adapt, wander, merged, alpha):
    model = adapt(alpha=alpha)
    model.write(model.initial_adapter(5))
    plain = tiny.model()(input_ids=IDS).logits.flatten(0, 1)
    assert torch.equal(model.logits(IDS, ALL), plain)  # B = 0: the base, bit for bit
    adapter = wander(model)
    model.write(adapter)
    expected = merged(adapter, alpha / 2)(input_ids=IDS).logits.flatten(0, 1)
    torch.testing.assert_close(model.logits(IDS, ALL), expected)
    assert not torch.allclose(expected, plain, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize(("layers", "dtype"), [("all", "float32"), ("1,3", "float32"), ("top:2", "bfloat16")])
def test_two_parts_are_the_whole(adapt, wander, layers, dtype):
    model = adapt(dtype, layers=layers)
    adapter = wander(model)
    model.write(model.initial_adapter(0))
    hidden = model.lower(IDS)
    model.write(adapter)
    assert torch.equal(model.lower(IDS), hidden)  # whatever the adapter is
    whole = model.logits(IDS, ALL)
    torch.testing.assert_close(model.logits(IDS, ALL, hidden), whole)
    torch.testing.assert_close(model.logits(IDS, ALL), whole)  # the real layers are back
    assert {p.dtype for p in model.parameters.values()} == {torch.float32}
    if model.lowest:  # what is below is really left out
        assert torch.equal(model.logits(torch.zeros_like(IDS), ALL, hidden), model.logits(IDS, ALL, hidden))
        assert not torch.allclose(model.logits(IDS, ALL, torch.zeros_like(hidden)), whole)


SMALL = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip

# mistral: sliding window; gemma2: scaled embeddings, capped logits, layers of two kinds;
# gpt_neo: learnt positions added to the embeddings, layers that return tuples; gpt2: transposed weights
KINDS = {
    "mistral": SMALL | {"sliding_window": 4},
    "gemma2": SMALL | {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gpt_neo": {
        "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "window_size": 4,
        "max_position_embeddings": 128, "attention_types": [[["global", "local"], 2]], "initializer_range": 0.2,
    },
    "gpt2": {"vocab_size": tiny.VOCAB, "n_layer": 4, "n_embd": 32, "n_head": 4, "initializer_range": 0.2,
             "bos_token_id": 0, "eos_token_id": 0},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_two_parts_are_the_whole_of_any_architecture(kind: str) -> None:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **KINDS[kind]))
    module.requires_grad_(False).eval()
    ids = torch.randint(1, 250, (3, 12))
    whole = module(input_ids=ids, use_cache=False).logits
    targets = ("c_attn",) if kind == "gpt2" else ("q_proj", "v_proj")
    base = Base(kind, "", module, tiny.tokenizer(), torch.device("cpu"))
    model = AdaptedModel(base, LoraConfig(layers="2,3", targets=targets))
    positions = torch.tensor([0, 7, 11, 23, 35])
    model.write(model.initial_adapter(0))
    split = model.logits(ids, positions, model.lower(ids))
    torch.testing.assert_close(split, whole.flatten(0, 1)[positions], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_positions_and_padding_do_not_change_logits(adapt, wander):
    model = adapt()
    model.write(wander(model))
    positions = torch.tensor([13, 0, 4, 4])
    torch.testing.assert_close(model.logits(IDS, positions), model.logits(IDS, ALL)[positions])
    positions = torch.tensor([2, 3])
    padded = torch.tensor([[7, 8, 9, 10, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(model.logits(padded, positions), model.logits(padded[:1, :4], positions))
    other = padded.clone()
    other[0, 4:] = 99  # whatever stands there
    assert torch.equal(model.logits(other, positions), model.logits(padded, positions))
    assert torch.equal(model.lower(other)[0, :4], model.lower(padded)[0, :4])


@torch.no_grad()
def test_dropout_is_off_until_it_is_switched_on(adapt, wander):
    model = adapt(dropout=0.5)
    model.write(wander(model))
    off = model.logits(IDS, ALL)
    model.train(True)
    assert not torch.equal(model.logits(IDS, ALL), off)
    model.train(False)
    assert torch.equal(model.logits(IDS, ALL), off)


@torch.no_grad()
def test_a_model_that_cannot_be_cut_runs_whole():
    """One whose upper layers read what a lower layer left behind, and one that hands on more than hidden states."""
    base, whole = (load_base(ModelConfig(path="tiny", device="cpu")) for _ in range(2))
    for module in (base.module, whole.module):
        layers, left = module.model.layers, []
        layers[0].register_forward_hook(lambda module, args, output, left=left: left.append(output))
        layers[3].register_forward_hook(lambda module, args, output, left=left: output + left.pop())
    model = AdaptedModel(base, LoraConfig(layers="top:2"))
    assert model.lowest == 0
    assert {target.split(".")[2] for target in model.targets} == {"2", "3"}  # what is adapted stays
    (said,) = model.remarks
    assert said.startswith("tiny cannot be cut below layer 2, the lowest adapted one: hidden states are not kept")
    torch.testing.assert_close(model.logits(IDS, ALL), whole.module(input_ids=IDS).logits.flatten(0, 1))


def test_a_model_whose_layers_are_in_no_list():
    base = load_base(ModelConfig(path="tiny", device="cpu"))
    with pytest.raises(ModelError, match="keeps its decoder layers in no ModuleList"):
        AdaptedModel(replace(base, module=base.module.lm_head), LoraConfig())


def idle(base: Base) -> None:
    """Layer 3 reads the weights of its down_proj without calling it."""
    mlp = base.module.model.layers[3].mlp
    mlp.forward = lambda x: (mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)) @ mlp.down_proj.weight.T


def test_layers_that_are_never_called_are_left_out_of_all_linear_and_refused_by_name():
    base = load_base(ModelConfig(path="tiny", device="cpu"))
    idle(base)
    model = AdaptedModel(base, LoraConfig(layers="top:1"))
    assert model.remarks == [
        "lora.targets: model.layers.3.mlp.down_proj: left as before, because texts never pass them"
    ]
    assert len(model.targets) == 6
    base = load_base(ModelConfig(path="tiny", device="cpu"))
    idle(base)
    with pytest.raises(ModelError, match=r"lora.targets: tiny never uses model.layers.3.mlp.down_proj on text"):
        AdaptedModel(base, LoraConfig(layers="top:1", targets=("q_proj", "down_proj")))


def test_a_model_that_passes_no_gradient_on_is_refused():
    base = load_base(ModelConfig(path="tiny", device="cpu"))
    base.module.model.norm.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(ModelError, match="passes no gradient on to adapters"):
        AdaptedModel(base, LoraConfig(layers="top:1"))


@torch.no_grad()
def test_several_streams_of_states_are_described_by_their_mean(adapt):
    model = adapt(fresh=True)
    plain = model.entering(IDS, 1)
    assert torch.equal(plain, model.lower(IDS, 1))
    for axis in (0, 2):
        model.lower = lambda ids, layer, axis=axis: torch.stack([plain, 3 * plain], axis)
        torch.testing.assert_close(model.entering(IDS, 1), 2 * plain)
