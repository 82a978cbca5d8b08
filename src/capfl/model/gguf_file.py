"""An adapter as a GGUF file, which llama.cpp and what is built on it load beside a base model in GGUF.

The rules are llama.cpp's. Its runtime multiplies the product of a pair by alpha / rank, with one alpha a file and the
rank of the pair's own tensors. Its converter reorders the rows of q and k for the models below that rotate neighbours.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gguf
from gguf import MODEL_ARCH
from torch import Tensor

from capfl import adapter as algebra
from capfl.config.schema import ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.files import AGAIN, naming
from capfl.model.base import skeleton
from capfl.model.card import load_card
from capfl.model.export import base_config, load_adapter


@dataclass(frozen=True)
class Kind:
    """An architecture in llama.cpp's words, and whether its converter reorders the rows of q and k."""

    arch: MODEL_ARCH
    reorders: bool = False


KINDS = {  # by model_type of config.json
    "llama": Kind(MODEL_ARCH.LLAMA, reorders=True),
    "mistral": Kind(MODEL_ARCH.LLAMA, reorders=True),
    "granite": Kind(MODEL_ARCH.GRANITE, reorders=True),
    "smollm3": Kind(MODEL_ARCH.SMOLLM3, reorders=True),
    "olmo2": Kind(MODEL_ARCH.OLMO2),
    "qwen2": Kind(MODEL_ARCH.QWEN2),
    "qwen3": Kind(MODEL_ARCH.QWEN3),
    "gemma": Kind(MODEL_ARCH.GEMMA),
    "gemma2": Kind(MODEL_ARCH.GEMMA2),
    "gemma3_text": Kind(MODEL_ARCH.GEMMA3),
    "phi3": Kind(MODEL_ARCH.PHI3),
    "gpt2": Kind(MODEL_ARCH.GPT2),
}


def save_gguf(folder: Path, given: ModelConfig, out: Path) -> None:
    """Write the adapter in a folder as a GGUF LoRA file, in float32. Of the base only the config is read.

    Args:
        folder: of an adapter that capfl or PEFT saved.
        given: says which base, where the adapter does not.

    Raises:
        ConfigError: there is a file ``out``.
        ModelError: the adapter cannot be read or does not fit its base, or llama.cpp's names of the base's tensors
            are not known here.
        CheckpointError: the disk is full, or the file cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; choose another name")
    adapter, saved = load_adapter(folder)
    found = base_config(folder, saved, load_card(folder), given)
    module = cast(Any, skeleton(found))
    kind = KINDS.get(module.config.model_type)
    if kind is None:
        raise ModelError(
            f"{found.path} is a {module.config.model_type} model, whose tensors in GGUF are not known here "
            f"(known: {', '.join(KINDS)}); use --merged, and convert the merged model with llama.cpp's own converter"
        )
    tensors = {}
    names = gguf.get_tensor_name_map(kind.arch, module.config.num_hidden_layers)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    for name, down, up in algebra.factors(adapter):
        if sorted(shapes.get(f"{name}.weight", ())) != sorted((len(up), down.shape[1])):
            raise ModelError(f"{folder}: {name} does not fit {found.path}; give its own base as --model-path")
        target = names.get_name(name)
        if target is None:
            raise ModelError(f"{name} has no name in GGUF; use --merged, and convert with llama.cpp's own converter")
        if kind.reorders:
            up = _reordered(up, name, module.config)
        tensors[f"{target}.weight.lora_a"] = down
        tensors[f"{target}.weight.lora_b"] = up * (len(down) / saved.r)  # the runtime has alpha / rank, PEFT alpha / r
    _write(out, kind.arch, float(saved.lora_alpha), tensors)


def _reordered(up: Tensor, name: str, config: Any) -> Tensor:
    """B's rows (d_out, r) of q and k, each head's two halves taken in turns: row i, then row i + half."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.rpartition(".")[2])
    if heads is None:
        return up
    return up.reshape(heads, 2, -1, up.shape[1]).transpose(1, 2).reshape(up.shape)


def _write(out: Path, arch: MODEL_ARCH, alpha: float, tensors: dict[str, Tensor]) -> None:
    work = out.with_name(f".{out.name}.{os.getpid()}")
    with naming(out, AGAIN):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = gguf.GGUFWriter(work, gguf.MODEL_ARCH_NAMES[arch])
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
            for name, t in tensors.items():
                writer.add_tensor(name, t.float().contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            os.replace(work, out)
        finally:
            work.unlink(missing_ok=True)
