"""Which tensors an adapter has and in which shapes: all that can be known of a model without its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, MistralConfig
from transformers.pytorch_utils import Conv1D

from capfl.config.schema import LoraConfig, ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.model import tiny

Shapes = dict[str, tuple[int, int]]

KNOWN: Mapping[str, Callable[[], Any]] = {  # what config.json says of these, as far as shapes go
    "smollm2": partial(
        LlamaConfig, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
        intermediate_size=1536, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
    "meta-llama/Llama-3.2-3B": partial(
        LlamaConfig, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8,
        head_dim=128, intermediate_size=8192, vocab_size=128256, max_position_embeddings=131072,
        tie_word_embeddings=True,
    ),
    "mistralai/Mistral-7B-v0.1": partial(
        MistralConfig, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, intermediate_size=14336, vocab_size=32000, max_position_embeddings=32768,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


def skeleton(config: ModelConfig) -> nn.Module:
    """The base model on torch's meta device: every module and every shape, no weights, no memory.

    Models in ``KNOWN`` and ``tiny`` need neither files nor network; of others only the config is read.

    Raises:
        ModelError: the config cannot be read, or is not that of a causal language model.
    """
    if config.path == "tiny":
        with torch.device("meta"):
            small: nn.Module = tiny.model()
            return small
    folder = Path(config.path).expanduser()
    here = config.path != "smollm2" and folder.is_dir()
    try:
        known = None if here else KNOWN.get(config.path)
        settings = known() if known else AutoConfig.from_pretrained(str(folder) if here else config.path)
        with torch.device("meta"):
            module: nn.Module = AutoModelForCausalLM.from_config(settings)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.path: cannot read the shapes of {config.path!r}: {first}\n"
            f"Give {', '.join(KNOWN)}, tiny, a folder saved with save_pretrained, or a Hub name that this machine "
            "can reach."
        ) from error
    return module


def adapter_shapes(module: nn.Module, config: LoraConfig) -> Shapes:
    """The shapes of the adapter that ``AdaptedModel`` gives this module, by name and in its order.

    ``<module>.A`` is (r, d_in), ``<module>.B`` is (d_out, r). The module is not changed.

    Raises:
        ConfigError: a layer or a target that the module does not have.
        ModelError: its decoder layers cannot be found.
    """
    layers = decoder_layers(module)
    shapes: Shapes = {}
    linear = linear_layers(module)
    for name in target_names(module, layers, chosen_layers(config.layers, len(layers)), config.targets):
        d_in, d_out = linear[name]
        shapes[f"{name}.A"], shapes[f"{name}.B"] = (config.rank, d_in), (d_out, config.rank)
    return shapes


# -- which layers are adapted --------------------------------------------------------------------------


def decoder_layers(module: nn.Module) -> nn.ModuleList:
    """The model's decoder layers, the lowest first.

    Raises:
        ModelError: it keeps them in no ModuleList.
    """
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    depth = getattr(getattr(module, "config", None), "num_hidden_layers", None)
    fitting = [m for m in lists if len(m) == depth]
    if not fitting:
        raise ModelError("this model keeps its decoder layers in no ModuleList; capfl cannot place adapters in it")
    return fitting[0]


def chosen_layers(spec: str, depth: int) -> list[int]:
    """Numbers of the layers that ``lora.layers`` asks for, ascending.

    Raises:
        ConfigError: there are fewer layers.
    """
    if spec == "all":
        return list(range(depth))
    if spec.startswith("top:"):
        count = int(spec.removeprefix("top:"))
        if count > depth:
            raise ConfigError(f"lora.layers: {spec} of a model that has {depth} layers")
        return list(range(depth - count, depth))
    chosen = sorted({int(i) for i in spec.split(",")})
    if chosen[-1] >= depth:
        raise ConfigError(f"lora.layers: there is no layer {chosen[-1]}; the model has layers 0 to {depth - 1}")
    return chosen


def target_names(module: nn.Module, layers: nn.ModuleList, chosen: list[int], targets: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers that are adapted.

    Raises:
        ConfigError: a layer has no linear layer of that name; lists those that it has.
    """
    prefix = next(name for name, m in module.named_modules() if m is layers)
    found = []
    for i in chosen:
        linear = list(linear_layers(layers[i]))
        for target in targets:
            fitting = [name for name in linear if name == target or name.endswith("." + target)]
            if not fitting:
                choices = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
                raise ConfigError(f"lora.targets: layer {i} has no linear layer {target!r}; choose from {choices}")
            found += [f"{prefix}.{i}.{name}" for name in fitting]
    return found


def linear_layers(layer: nn.Module) -> Shapes:
    """(d_in, d_out) of every linear layer within a decoder layer, by its name there; GPT-2's transposed ones too."""
    found: Shapes = {}
    for name, m in layer.named_modules():
        if isinstance(m, (nn.Linear, Conv1D)):
            a, b = m.weight.shape
            found[name] = (a, b) if isinstance(m, Conv1D) else (b, a)
    return found
