"""Which linear layers of a model an adapter is for. Weights are not looked at, so a skeleton will do."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from capfl.config.schema import ALL_LINEAR, LoraConfig
from capfl.errors import ConfigError, ModelError

Shapes = dict[str, tuple[int, int]]


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
    """(d_in, d_out) of the linear layers that are adapted, by their full names; raises as ``adapter_shapes``."""
    layers = decoder_layers(module)
    prefix = next(name for name, m in module.named_modules() if m is layers)
    found: Shapes = {}
    for i in chosen_layers(config.layers, len(layers)):
        linear = linear_layers(layers[i])
        for target in config.targets:
            fitting = [name for name in linear if fits(name, target)]
            if not fitting:
                choices = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
                raise ConfigError(f"lora.targets: layer {i} has no linear layer {target!r}; choose from {choices}")
            found |= {f"{prefix}.{i}.{name}": linear[name] for name in fitting}
    return found


def fits(name: str, target: str) -> bool:
    """Does an entry of ``lora.targets`` name a linear layer, by its name within a decoder layer?"""
    return target in (ALL_LINEAR, name) or name.endswith("." + target)


def decoder_layers(module: nn.Module) -> nn.ModuleList:
    """The model's decoder layers, the lowest first.

    Raises:
        ModelError: it keeps them in no ModuleList.
    """
    depth = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    for m in module.modules():
        if isinstance(m, nn.ModuleList) and len(m) == depth:
            return m
    raise ModelError("this model keeps its decoder layers in no ModuleList; capfl cannot place adapters in it")


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
            raise ConfigError(f"lora.layers: {spec} of a model that has {depth} layers")
        return list(range(depth - count, depth))
    chosen = sorted({int(i) for i in spec.split(",")})
    if chosen[-1] >= depth:
        raise ConfigError(f"lora.layers: there is no layer {chosen[-1]}; the model has layers 0 to {depth - 1}")
    return chosen


def linear_layers(layer: nn.Module) -> Shapes:
    """(d_in, d_out) of every linear layer within a decoder layer, by its name there; GPT-2's transposed ones too."""
    found: Shapes = {}
    for name, m in layer.named_modules():
        if isinstance(m, (nn.Linear, Conv1D)):
            a, b = m.weight.shape
            found[name] = (a, b) if isinstance(m, Conv1D) else (b, a)
    return found
