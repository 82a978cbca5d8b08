"""Adapters on disk in stock PEFT format: what any PEFT user can load, and nothing else."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import peft
import safetensors
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from capfl import adapter as algebra
from capfl.errors import ModelError
from capfl.types import Adapter

_PREFIX = "base_model.model."


def save_adapter(adapter: Adapter, config: peft.LoraConfig, folder: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``; each appears whole or not at all.

    Ranks are those of the tensors. Where a module's is not ``config.r`` its alpha follows, so that alpha / r stays.
    """
    own = {module: rank for module, rank in algebra.ranks(adapter).items() if rank != config.r}
    alphas = {module: config.lora_alpha * rank / config.r for module, rank in own.items()}
    config = replace(config, rank_pattern=own, alpha_pattern=alphas)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, t in adapter.items():
        module, _, factor = name.rpartition(".")
        tensors[f"{_PREFIX}{module}.lora_{factor}.weight"] = t.contiguous()
    with tempfile.TemporaryDirectory(dir=folder) as work:
        save_file(tensors, Path(work, "adapter_model.safetensors"), metadata={"format": "pt"})
        config.save_pretrained(work)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            os.replace(Path(work, file), folder / file)


def load_adapter(folder: Path) -> tuple[Adapter, peft.LoraConfig]:
    """Read an adapter that capfl or PEFT saved: its factors, to be scaled by ``lora_alpha / r`` of its config.

    Modules with a rank or an alpha of their own, and rsLoRA's alpha / sqrt(r), keep their effect: B is rescaled.

    Raises:
        ModelError: the folder holds no LoRA adapter, or its tensors are not plain LoRA factors.
    """
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file() or not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds no PEFT adapter (adapter_config.json and adapter_model.safetensors)")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        tensors = load_file(weights)
    except (safetensors.SafetensorError, json.JSONDecodeError, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} holds a damaged adapter: {error}") from error
    if not isinstance(config, peft.LoraConfig):
        raise ModelError(f"{folder} holds a {config.peft_type} adapter; capfl reads LoRA only")
    adapter: Adapter = {}
    for key, t in tensors.items():
        module, _, factor = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if factor not in ("A", "B") or t.ndim != 2:
            raise ModelError(f"{weights}: tensor {key!r} is not a LoRA factor; capfl reads plain LoRA only")
        adapter[f"{module}.{factor}"] = t.float()
    for module, rank in algebra.ranks(adapter).items():
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        adapter[f"{module}.B"] *= scale / (config.lora_alpha / config.r)
    return adapter, config
