"""The adapter in the model: written whole or not at all, computed in two parts or one, with the same logits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.model import tiny
from capfl.model.base import load_base
from capfl.model.lora import AdaptedModel

IDS = torch.arange(3, 17).reshape(2, 7)
ALL = torch.arange(14)


def values(model: AdaptedModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.parameters.items()}


# -- the adapter's values ------------------------------------------------------------------------------


def test_names_shapes_and_what_asks_for_gradients(adapt):
    model = adapt(fresh=True, dropout=0.25)
    shapes = {name: tuple(p.shape) for name, p in model.parameters.items()}
    assert shapes == {
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


# -- which modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "layers"),
    [("all", {0, 1, 2, 3}), ("top:1", {3}), ("0", {0}), ("3,1,3", {1, 3})],
)
def test_layers(adapt, spec, layers):
    model = adapt(layers=spec)
    assert {int(name.split(".")[2]) for name in model.parameters} == layers
    assert model.lowest == min(layers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "top:5"}, "lora.layers: top:5 of a model that has 4 layers"),
        ({"layers": "1,4"}, "there is no layer 4; .* layers 0 to 3"),
        ({"targets": ["q_proj", "query"]}, r"layer 2 has no linear layer 'query'; choose from .*k_proj.*q_proj"),
        ({"targets": ["proj"]}, "no linear layer 'proj'"),  # part of a name is not a name
    ],
)
def test_layers_and_targets_that_are_not_there(adapt, settings, message):
    with pytest.raises(ConfigError, match=message):
        adapt(**settings)


def test_targets_of_the_mlp(adapt):
    model = adapt(targets=["mlp.up_proj", "o_proj"], layers="0")
    assert [name.removeprefix("model.layers.0.") for name in model.parameters] == [
        "mlp.up_proj.A", "mlp.up_proj.B", "self_attn.o_proj.A", "self_attn.o_proj.B",
    ]  # fmt: skip


# -- the forward pass -----------------------------------------------------------------------------------


@torch.no_grad()
def plain_logits(scale: float = 0.0, adapter=None) -> torch.Tensor:
    """Logits of the tiny model as transformers computes them, with the adapter merged into its weights."""
    plain = tiny.model()
    for name in adapter or {}:
        module, _, factor = name.rpartition(".")
        if factor == "A":
            plain.get_submodule(module).weight += scale * adapter[f"{module}.B"] @ adapter[name]
    return plain(input_ids=IDS).logits.flatten(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("alpha", [2.0, 8.0])
def test_an_adapter_adds_alpha_over_r_times_b_a(adapt, wander, alpha):
    model = adapt(alpha=alpha)
    model.write(model.initial_adapter(5))
    assert torch.equal(model.logits(IDS, ALL), plain_logits())  # B = 0: the base, bit for bit
    adapter = wander(model)
    model.write(adapter)
    expected = plain_logits(alpha / 2, adapter)
    torch.testing.assert_close(model.logits(IDS, ALL), expected)
    assert not torch.allclose(expected, plain_logits(), atol=1e-2)


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


def test_a_model_that_cannot_be_cut_is_noticed():
    """One whose upper layers read what a lower layer left behind."""
    base = load_base(ModelConfig(path="tiny", device="cpu"))
    left: list[torch.Tensor] = []
    base.module.model.layers[1].register_forward_hook(lambda module, args, output: left.append(output))
    base.module.model.layers[3].register_forward_hook(
        lambda module, args, output: output + left.pop() if left else output
    )
    model = AdaptedModel(base, LoraConfig(layers="top:2"))
    lower = model.lower

    def forget(ids: torch.Tensor) -> torch.Tensor:  # between the two parts other batches pass
        hidden = lower(ids)
        left.clear()
        return hidden

    model.lower = forget  # type: ignore[method-assign]
    left.clear()
    with pytest.raises(ModelError, match=r"lora.layers: tiny cannot be cut below layer 2 .*; use lora.layers = all"):
        model.check_split()


def test_a_model_without_a_list_of_layers_is_refused():
    base = load_base(ModelConfig(path="tiny", device="cpu"))
    with pytest.raises(ModelError, match="keeps its decoder layers in no ModuleList"):
        AdaptedModel(replace(base, module=base.module.lm_head), LoraConfig())
