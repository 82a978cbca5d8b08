"""Which linear layers of a model an adapter is for. Weights are not looked at, so a skeleton will do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from capfl.config.schema import ALL_LINEAR, LoraConfig
from capfl.errors import ConfigError, ModelError
from capfl.model.accept import text_config

Shapes = dict[str, tuple[int, int]]

ROUTERS = ("gate", "router_gate", "shared_expert_gate")  # the last name of what chooses experts, or one with "router"
UNCALLED = ("dt_proj",)  # of Mamba: its weights are read, and the module is never called
BYPASSED = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")  # their kernels read out_proj's weights alone


def adapter_shapes(module: nn.Module, config: LoraConfig) -> Shapes:
    """The shapes of a model's adapter, by name and in its order: ``MODULE.A`` is (r, d_in), ``MODULE.B`` (d_out, r).

    Raises:
        ConfigError: a layer or a target that the module does not have.
        ModelError: its decoder layers cannot be found.
    """
    shapes: Shapes = {}
    for name, (d_in, d_out) in adapted_layers(module, config).items():
        shapes[f"{name}.A"], shapes[f"{name}.B"] = (config.rank, d_in), (d_out, config.rank)
    return shapes


def adapted_layers(module: nn.Module, config: LoraConfig) -> Shapes:
    """(d_in, d_out) of the linear layers that are adapted, by their full names; raises as ``adapter_shapes``.

    Where layers are of several kinds, those that lack a target are left as they are, see ``remarks``.
    """
    layers = decoder_layers(module)
    names = {id(m): name for name, m in module.named_modules()}  # one that several layers share has the lowest's name
    found: Shapes = {}
    chosen = chosen_layers(config.layers, len(layers))
    linear = {i: _adaptable(layers[i], module) for i in chosen}
    for i in chosen:
        for target in config.targets:
            for name in _fitting(linear[i], target):
                found.setdefault(names[id(layers[i].get_submodule(name))], linear[i][name])
    for target in config.targets:
        if not any(_fitting(linear[i], target) for i in chosen):
            raise ConfigError(f"lora.targets: {_lacking(layers, chosen, target, module)}")
    return found


def named_layers(module: nn.Module, names: Iterable[str]) -> Shapes:
    """(d_in, d_out) of linear layers by their full names, which must be within decoder layers.

    Raises:
        ModelError: there is no such linear layer, or it is elsewhere.
    """
    layers = decoder_layers(module)
    prefix, modules = f"{_prefix(module, layers)}.", dict(module.named_modules())
    found: Shapes = {}
    for name in names:
        shape = _shape(modules.get(name))
        if shape is None:
            raise ModelError(f"the base has no linear layer {name}; give the model that the adapter was trained on")
        if not name.startswith(prefix):
            raise ModelError(
                f"{name} is no part of the base's decoder layers ({prefix}N), which is all that capfl adapts; merge "
                "the adapter into its base with PEFT's merge_and_unload, and give that as model.path"
            )
        found[name] = shape
    return {name: found[name] for name in modules if name in found}  # in the model's order


def remarks(module: nn.Module, config: LoraConfig) -> list[str]:
    """What is not adapted although ``lora.targets`` and ``lora.layers`` could be read to mean it, a sentence each."""
    layers, said = decoder_layers(module), list[str]()
    chosen = chosen_layers(config.layers, len(layers))
    for target in config.targets:
        if lacking := [i for i in chosen if not _fitting(_adaptable(layers[i], module), target)]:
            said.append(
                f"lora.targets: {_numbers(lacking)} no linear layer {target!r}, and {_is(lacking)} left as before"
            )
    if ALL_LINEAR in config.targets:
        inside = {name: m for i in chosen for name, m in layers[i].named_modules()}
        fused = sorted(
            {f"{name}.{own}" for name, m in inside.items() if "expert" in name
             for own, p in m.named_parameters(recurse=False) if p.ndim == 3}
        )  # fmt: skip
        refused = sorted(
            {name for i in chosen for name in linear_layers(layers[i]).keys() - _adaptable(layers[i], module)}
        )
        routers = sorted({name for name, m in inside.items() if _shape(m) and _is_router(name)})
        if fused:
            said.append(f"lora.targets: {', '.join(fused)}: weights of experts in one tensor are left as before")
        if refused:
            said.append(
                f"lora.targets: {', '.join(refused)}: left as before, because PEFT adapts no layers of this name here"
            )
        if routers:
            said.append(f"lora.targets: {', '.join(routers)}: routers are adapted only if they are named")
    return said


def lowest_layer(module: nn.Module, names: Iterable[str]) -> int:
    """The number of the lowest decoder layer with one of the modules that are named."""
    layers = decoder_layers(module)
    start = len(_prefix(module, layers)) + 1
    return min(int(name[start:].partition(".")[0]) for name in names)


def fits(name: str, target: str) -> bool:
    """Does an entry of ``lora.targets`` name a linear layer, by its name within a decoder layer?"""
    if target == ALL_LINEAR:
        return not _is_router(name)
    return target == name or name.endswith("." + target)


def decoder_layers(module: nn.Module) -> nn.ModuleList:
    """The decoder layers of the part that reads text, the lowest first.

    Raises:
        ModelError: it keeps them in no ModuleList.
    """
    decoder = getattr(module, "get_decoder", lambda: module)()
    for whole in (decoder, module):
        depth = getattr(text_config(whole.config), "num_hidden_layers", None) if hasattr(whole, "config") else None
        for m in whole.modules():
            if isinstance(m, nn.ModuleList) and len(m) == depth:
                return m
    raise ModelError("this model keeps its decoder layers in no ModuleList; capfl cannot place adapters in it")


def hidden_size(module: nn.Module) -> int:
    """The width of what goes from one decoder layer to the next."""
    return int(text_config(cast(Any, module).config).hidden_size)


def chosen_layers(spec: str, depth: int) -> list[int]:
    """Numbers of the layers that ``lora.layers`` asks for, ascending.

    Raises:
        ConfigError: there are fewer layers.
    """
    if spec == "all":
        return list(range(depth))
    if spec.endswith("%"):  # at least one
        share = int(spec.removeprefix("top:").removesuffix("%"))
        return list(range(depth - max(1, depth * share // 100), depth))
    if spec.startswith("top:"):
        count = int(spec.removeprefix("top:"))
        if count > depth:
            raise ConfigError(f"lora.layers: {spec} of a model that has {depth} layers; give at most top:{depth}")
        return list(range(depth - count, depth))
    chosen = sorted({int(i) for i in spec.split(",")})
    if chosen[-1] >= depth:
        raise ConfigError(f"lora.layers: there is no layer {chosen[-1]}; the model has layers 0 to {depth - 1}")
    return chosen


def linear_layers(layer: nn.Module) -> Shapes:
    """(d_in, d_out) of every linear layer within a decoder layer, by its name there; GPT-2's transposed ones too."""
    return {name: shape for name, m in layer.named_modules() if (shape := _shape(m))}


def _shape(module: nn.Module | None) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features  # not the weight's, which may be packed
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def _adaptable(layer: nn.Module, module: nn.Module) -> Shapes:
    """The linear layers within a decoder layer that an adapter can change, by their names there.

    PEFT refuses projections whose weights fused kernels read without calling the module. In models whose experts have
    become one tensor, it takes the names that the experts' layers had for that tensor, wherever they stand. An adapter
    in a module that is never called would change nothing.
    """
    kind = getattr(getattr(module, "config", None), "model_type", "")
    taken = {*_MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(kind, ""), ())}
    taken |= {*UNCALLED, "out_proj"} if kind in BYPASSED else {*UNCALLED}
    return {name: shape for name, shape in linear_layers(layer).items() if _last(name) not in taken}


def _fitting(linear: Iterable[str], target: str) -> list[str]:
    return [name for name in linear if fits(name, target)]


def _lacking(layers: nn.ModuleList, chosen: Sequence[int], target: str, module: nn.Module) -> str:
    """What is wrong with a target that none of the chosen layers has, and what to do."""
    elsewhere = [i for i, layer in enumerate(layers) if _fitting(_adaptable(layer, module), target)]
    if elsewhere:
        numbers = ",".join(map(str, elsewhere))
        return f"{_numbers(chosen)} no linear layer {target!r}; layers that have it: lora.layers = {numbers}"
    there = sorted({_last(name) for i in chosen for name in _adaptable(layers[i], module)})
    refused = any(_fitting(linear_layers(layers[i]), target) for i in chosen)
    what = f"{target!r}{' that an adapter can change' if refused else ''}"
    return f"{_numbers(chosen)} no linear layer {what}; choose from {', '.join(there) or 'other layers'}"


def _numbers(layers: Sequence[int]) -> str:
    return f"layer {layers[0]} has" if len(layers) == 1 else f"layers {', '.join(map(str, layers))} have"


def _is(layers: Sequence[int]) -> str:
    return "is" if len(layers) == 1 else "are"


def _is_router(name: str) -> bool:
    return _last(name) in ROUTERS or _last(name).endswith("router")


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _prefix(module: nn.Module, layers: nn.ModuleList) -> str:
    prefix: str = next(name for name, m in module.named_modules() if m is layers)
    return prefix
