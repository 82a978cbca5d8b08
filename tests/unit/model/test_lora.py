"""The adapter in the model: written whole or not at all, computed in two parts or one, with the same logits."""

from __future__ import annotations

import math

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


def test_names_and_shapes(adapt):
    model = adapt()
    shapes = {name: tuple(p.shape) for name, p in model.parameters.items()}
    assert shapes == {
        f"model.layers.{layer}.self_attn.{target}_proj.{factor}": shape
        for layer in (2, 3)
        for target, out in (("q", 32), ("v", 16))
        for factor, shape in (("A", (2, 32)), ("B", (out, 2)))
    }
    assert model.lowest == 2


def test_the_initial_adapter_is_bounded_zero_in_b_and_a_function_of_the_seed(adapt):
    model = adapt()
    first, again, other = model.initial_adapter(0), adapt().initial_adapter(0), model.initial_adapter(1)
    for name, t in first.items():
        assert torch.equal(t, again[name])
        if name.endswith(".A"):
            assert float(t.abs().max()) <= 1 / math.sqrt(32)
            assert float(t.abs().max()) > 0.5 / math.sqrt(32)
            assert not torch.equal(t, other[name])
        else:
            assert not t.any()
    matrices = [t for name, t in first.items() if name.endswith(".A")]
    assert not any(torch.equal(matrices[0], t) for t in matrices[1:])  # each from a stream of its own


def test_a_layers_initial_values_do_not_depend_on_which_others_are_adapted(adapt):
    few, many = adapt(layers="3").initial_adapter(0), adapt(layers="all").initial_adapter(0)
    assert few.keys() < many.keys()
    assert all(torch.equal(t, many[name]) for name, t in few.items())


def test_what_is_written_is_copied(adapt, wander):
    model = adapt()
    adapter = wander(model)
    model.write(adapter)
    assert all(torch.equal(t, adapter[name]) for name, t in values(model).items())
    next(iter(adapter.values())).add_(1)
    assert not all(torch.equal(t, adapter[name]) for name, t in values(model).items())


@pytest.mark.parametrize("kind", ["missing", "unknown", "shape", "turned"])
def test_an_adapter_that_does_not_fit_is_refused_whole(adapt, wander, kind):
    model = adapt()
    model.write(model.initial_adapter(0))
    before = values(model)
    adapter = wander(model)
    *_, last = adapter
    if kind == "missing":
        del adapter[last]
    elif kind == "unknown":
        adapter["model.layers.9.self_attn.q_proj.A"] = torch.zeros(2, 32)
    elif kind == "shape":
        adapter[last] = torch.zeros(16, 3)
    else:
        adapter[last] = adapter[last].T
    with pytest.raises(ModelError, match="check rank, targets and layers"):
        model.write(adapter)
    assert all(torch.equal(before[name], t) for name, t in values(model).items())


def test_a_mistake_names_the_tensor_and_both_shapes(adapt, wander):
    model = adapt()
    with pytest.raises(ModelError, match=r"'model.layers.2.self_attn.q_proj.A': shape missing, .* expects \(2, 32\)"):
        model.write({})
    with pytest.raises(ModelError, match=r"'x.A': shape \(1,\), the model expects no such tensor"):
        model.write({**wander(model), "x.A": torch.zeros(1)})


# -- which modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "layers"),
    [("all", {0, 1, 2, 3}), ("top:1", {3}), ("top:4", {0, 1, 2, 3}), ("0", {0}), ("3,1,3", {1, 3})],
)
def test_layers(adapt, spec, layers):
    model = adapt(layers=spec)
    assert {int(name.split(".")[2]) for name in model.parameters} == layers
    assert model.lowest == min(layers)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("top:5", "lora.layers: top:5 of a model that has 4 layers"), ("1,4", "there is no layer 4; .* layers 0 to 3")],
)
def test_layers_that_are_not_there(adapt, spec, message):
    with pytest.raises(ConfigError, match=message):
        adapt(layers=spec)


def test_an_unknown_target_lists_what_there_is(adapt):
    with pytest.raises(ConfigError, match=r"layer 2 has no linear layer 'query'; choose from .*k_proj.*q_proj"):
        adapt(targets=["q_proj", "query"])
    with pytest.raises(ConfigError, match="no linear layer 'proj'"):  # part of a name is not a name
        adapt(targets=["proj"])


def test_targets_of_the_mlp(adapt):
    model = adapt(targets=["mlp.up_proj", "o_proj"], layers="0")
    assert [name.removeprefix("model.layers.0.") for name in model.parameters] == [
        "mlp.up_proj.A", "mlp.up_proj.B", "self_attn.o_proj.A", "self_attn.o_proj.B",
    ]  # fmt: skip


def test_only_the_factors_ask_for_gradients(adapt):
    model = adapt()
    trainable = {id(p) for p in model.base.module.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in model.parameters.values()}


def test_the_peft_config_says_the_same(adapt):
    config = adapt(dropout=0.25).peft_config()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 8.0, 0.25)
    assert config.base_model_name_or_path == "tiny"
    assert len(config.target_modules) == 4


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
def test_an_adapter_with_b_zero_is_the_base_model_bit_for_bit(adapt):
    model = adapt()
    model.write(model.initial_adapter(5))
    assert torch.equal(model.logits(IDS, ALL), plain_logits())


@torch.no_grad()
@pytest.mark.parametrize("alpha", [2.0, 8.0])
def test_an_adapter_adds_alpha_over_r_times_b_a(adapt, wander, alpha):
    model = adapt(alpha=alpha)
    adapter = wander(model)
    model.write(adapter)
    expected = plain_logits(alpha / 2, adapter)
    torch.testing.assert_close(model.logits(IDS, ALL), expected)
    assert not torch.allclose(expected, plain_logits(), atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("layers", ["all", "top:2", "1,3"])
def test_two_parts_are_the_whole(adapt, wander, layers):
    model = adapt(layers=layers)
    model.write(wander(model))
    whole = model.logits(IDS, ALL)
    split = model.logits(IDS, ALL, model.lower(IDS))
    torch.testing.assert_close(split, whole)
    assert len(model.layers) == 4
    torch.testing.assert_close(model.logits(IDS, ALL), whole)  # the real layers are back


@torch.no_grad()
def test_what_is_below_is_really_left_out(adapt, wander):
    model = adapt()
    model.write(wander(model))
    hidden = model.lower(IDS)
    assert hidden.shape == (2, 7, 32)
    other = model.logits(IDS, ALL, torch.zeros_like(hidden))
    assert not torch.allclose(other, model.logits(IDS, ALL, hidden))
    assert torch.equal(model.logits(torch.zeros_like(IDS), ALL, hidden), model.logits(IDS, ALL, hidden))


@torch.no_grad()
def test_the_lower_part_does_not_depend_on_the_adapter(adapt, wander):
    model = adapt()
    before = model.lower(IDS)
    model.write(wander(model))
    assert torch.equal(model.lower(IDS), before)


@torch.no_grad()
def test_logits_at_positions_are_those_of_the_whole_sequence(adapt, wander):
    model = adapt()
    model.write(wander(model))
    positions = torch.tensor([13, 0, 4, 4])
    torch.testing.assert_close(model.logits(IDS, positions), model.logits(IDS, ALL)[positions])


@torch.no_grad()
def test_padding_does_not_change_logits(adapt, wander):
    model = adapt()
    model.write(wander(model))
    positions = torch.tensor([2, 3])
    padded = torch.tensor([[7, 8, 9, 10, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(model.logits(padded, positions), model.logits(padded[:1, :4], positions))
    other = padded.clone()
    other[0, 4:] = 99  # whatever stands there
    assert torch.equal(model.logits(other, positions), model.logits(padded, positions))
    assert torch.equal(model.lower(other)[0, :4], model.lower(padded)[0, :4])


def test_gradients_reach_every_factor_through_the_upper_part(adapt, wander):
    model = adapt()
    model.write(wander(model))
    model.logits(IDS, ALL, model.lower(IDS)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters.values())


@torch.no_grad()
def test_dropout_is_off_until_it_is_switched_on(adapt, wander):
    model = adapt(dropout=0.5)
    model.write(wander(model))
    off = model.logits(IDS, ALL)
    assert torch.equal(model.logits(IDS, ALL), off)
    model.train(True)
    assert not torch.equal(model.logits(IDS, ALL), off)
    model.train(False)
    assert torch.equal(model.logits(IDS, ALL), off)


@torch.no_grad()
def test_factors_stay_in_float32_on_a_half_precision_base(adapt, wander):
    model = adapt("bfloat16")
    model.write(wander(model))
    assert {p.dtype for p in model.parameters.values()} == {torch.float32}
    split = model.logits(IDS, ALL, model.lower(IDS))
    assert split.dtype == torch.bfloat16
    torch.testing.assert_close(split, model.logits(IDS, ALL))


def test_a_model_that_cannot_be_cut_is_noticed():
    """One whose upper layers read what a lower layer left behind."""
    base = load_base(ModelConfig(path="tiny", device="cpu"))
    left: list[torch.Tensor] = []

    def leave(module, args, output):
        left.append(output)

    def take(module, args, output):
        return output + left.pop() if left else output

    base.module.model.layers[1].register_forward_hook(leave)
    base.module.model.layers[3].register_forward_hook(take)
    model = AdaptedModel(base, LoraConfig(layers="top:2"))
    left.clear()
    with pytest.raises(ModelError, match=r"lora.layers: tiny cannot be cut below layer 2 .*; use lora.layers = all"):
        _forgetful(model, left).check_split()
    AdaptedModel(load_base(ModelConfig(path="tiny", device="cpu")), LoraConfig(layers="top:2")).check_split()


def _forgetful(model: AdaptedModel, left: list[torch.Tensor]) -> AdaptedModel:
    """Between computing the lower part and using it, other batches pass: nothing is left behind."""
    lower = model.lower

    def forget(ids: torch.Tensor) -> torch.Tensor:
        hidden = lower(ids)
        left.clear()
        return hidden

    model.lower = forget  # type: ignore[method-assign]
    return model


def test_a_model_without_a_list_of_layers_is_refused():
    from dataclasses import replace

    base = load_base(ModelConfig(path="tiny", device="cpu"))
    with pytest.raises(ModelError, match="keeps its decoder layers in no ModuleList"):
        AdaptedModel(replace(base, module=base.module.lm_head), LoraConfig())
