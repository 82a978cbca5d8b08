"""Load a frozen base model and its tokenizer. Once per process; all simulated clients share it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from capfl.config.schema import ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.model import smollm2, tiny

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Base:
    name: str  # as the user wrote it
    revision: str  # the same at all sites that load this model from the same kind of place
    module: nn.Module
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    digest: str = ""  # PRECISION:HASH of a sample of the weights, see ``same_weights``


def load_base(config: ModelConfig) -> Base:
    """Load, freeze and place the base model of a run.

    Raises:
        ConfigError: the device or the quantisation is not available here.
        ModelError: the model or its tokenizer cannot be loaded.
    """
    transformers_logging.disable_progress_bar()  # the run has a progress display of its own
    device = pick_device(config.device)
    options: dict[str, Any] = {"dtype": DTYPES[config.dtype]}
    if config.quantization != "none":
        options |= {"quantization_config": _quantisation(config, device), "device_map": {"": device}}
    if config.path == "tiny":
        if config.quantization != "none":
            raise ConfigError("model.quantization: the tiny test model has no quantised form")
        module: nn.Module = tiny.model().to(DTYPES[config.dtype])
        tokenizer = tiny.tokenizer()
    else:
        module, tokenizer = _from_pretrained(_folder_or_hub_name(config.path), config.path, options)
    module.requires_grad_(False)
    module.eval()
    if config.quantization == "none":
        module.to(device)
    return Base(config.path, _revision(module), module, tokenizer, device, _digest(module, config))


def _revision(module: nn.Module) -> str:
    """The Hub's commit where it is known, otherwise a digest of the architecture. The weights are not compared."""
    config: Any = module.config
    if commit := getattr(config, "_commit_hash", None):
        return str(commit)
    own_to_a_site = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config")
    shape = {key: value for key, value in config.to_dict().items() if key not in own_to_a_site}
    return hashlib.blake2b(json.dumps(shape, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


SAMPLED = 64  # values of each tensor


def _digest(module: nn.Module, config: ModelConfig) -> str:
    """A name for the weights: of some values of every tensor, rounded to bfloat16.

    So a model has the same name in float32 and bfloat16. In float16 or quantised it has another, because rounding twice
    is not rounding once.
    """
    found = hashlib.blake2b(digest_size=16)
    rounded = config.quantization == "none" and config.dtype != "float16"
    for p in module.parameters():
        flat = p.detach().reshape(-1)
        values = flat[torch.arange(SAMPLED, device=flat.device) * flat.numel() // SAMPLED]
        values = values.to(torch.bfloat16) if rounded else values
        found.update(repr(tuple(p.shape)).encode() + values.cpu().view(torch.uint8).numpy().tobytes())
    precision = "float16" if config.quantization == "none" else config.quantization
    return f"{'bfloat16' if rounded else precision}:{found.hexdigest()}"


def same_weights(a: str, b: str) -> bool | None:
    """Are digests those of the same weights? None: they are of other precisions, or one is empty, so nobody can say."""
    return a == b if a and b and a.partition(":")[0] == b.partition(":")[0] else None


def pick_device(wanted: str) -> torch.device:
    """The device that a config names, or the best one there is for ``auto``."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if not there[wanted]:
        found = ", ".join(name for name, ok in there.items() if ok)
        raise ConfigError(f"model.device: {wanted} is not available on this machine (found: {found})")
    return torch.device(wanted)


def _folder_or_hub_name(path: str) -> str:
    if path == "smollm2":
        return str(smollm2.folder())
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    folder = Path(path).expanduser()
    if looks_local and not folder.is_dir():
        raise ModelError(f"model.path: there is no folder {path}; give a folder, a Hub name, smollm2 or tiny")
    return str(folder) if folder.is_dir() else path


def _from_pretrained(source: str, name: str, options: dict[str, Any]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        module, report = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.path: cannot load {name!r} as a causal language model: {first}\n"
            "Give smollm2, tiny, a folder saved with save_pretrained, or a Hub name that this machine can reach."
        ) from error
    if report["missing_keys"]:  # transformers fills them with random numbers and a warning
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"model.path: {name!r} lacks {len(missing)} of its weights, {missing[0]} for one; restore them"
        )
    return module, tokenizer


def _quantisation(config: ModelConfig, device: torch.device) -> object:
    if device.type != "cuda":
        raise ConfigError(f"model.quantization: {config.quantization} needs CUDA, this run is on {device.type}")
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[config.dtype])
