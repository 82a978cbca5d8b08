"""Load a frozen base model and its tokenizer. Once per process; all simulated clients share it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from capfl.config.schema import ModelConfig
from capfl.errors import CapflError, ConfigError, ModelError
from capfl.machine import keep_memory
from capfl.model import smollm2, tiny
from capfl.model.accept import auto_class
from capfl.model.place import check_base as check_place
from capfl.model.probe import APART_IN_HALF, check_base
from capfl.model.quantised import check_weights, keep_trainable, loading

KNOWN: Mapping[str, Callable[[], Any]] = {  # what config.json says of these, as far as shapes go
    "tiny": tiny.config,
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

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, in a weight's name
SAMPLED = 64  # values of each tensor, of which a digest is made


@dataclass(frozen=True)
class Base:
    """A frozen base model.

    Attributes:
        name: ``model.path``, as the user wrote it.
        digest: ``PRECISION:HASH`` of a sample of the weights. Digests of one precision are equal where weights are.
    """

    name: str
    digest: str
    module: nn.Module
    tokenizer: PreTrainedTokenizerBase
    device: torch.device


def load_base(config: ModelConfig) -> Base:
    """Load, freeze and place the base model of a run.

    Raises:
        ConfigError: the device or the quantisation is not available here.
        ModelError: the model or its tokenizer cannot be loaded, or it is no causal language model (``probe``).
    """
    transformers_logging.disable_progress_bar()  # the run has a progress display of its own
    device, quantised = pick_device(config.device), config.quantization != "none"
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype)}
    if quantised:
        options |= loading(config, device)
    if device.type == "cpu":
        keep_memory()
    if config.path == "tiny":
        module, tokenizer = _tiny(options, quantised)
    else:
        module, tokenizer = _from_pretrained(config.path, options)
    module.requires_grad_(False)
    module.eval()
    if quantised:
        keep_trainable(module)
        check_weights(module)
    else:
        module.to(device)
    limit = APART_IN_HALF if config.quantization == "8bit" else None  # it takes large inputs of all rows together
    check_base(module, tokenizer, config.path, options["dtype"], limit)
    return Base(config.path, _digest(module, config), module, tokenizer, device)


def skeleton(config: ModelConfig) -> nn.Module:
    """The base model on torch's meta device: every module and every shape, no weights, no memory.

    Models in ``KNOWN`` need neither files nor network; of others only the config is read.

    Raises:
        ModelError: the config cannot be read, or is not that of a causal language model.
    """
    known = KNOWN.get(config.path)
    with _named(f"read the shapes of {config.path!r}"), torch.device("meta"):
        found = known() if known else _config(_folder_or_hub_name(config.path))
        module: nn.Module = auto_class(found, config.path).from_config(found)
    return module


def pick_device(wanted: str) -> torch.device:
    """The device that a config names, or the best one there is for ``auto``."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if not there[wanted]:
        found = ", ".join(name for name, ok in there.items() if ok)
        raise ConfigError(f"model.device: {wanted} is not available on this machine (found: {found})")
    return torch.device(wanted)


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
    quantised = "" if config.quantization == "none" else f"{config.quantization}-"
    return f"{'bfloat16' if rounded else quantised + config.dtype}:{found.hexdigest()}"


def _folder_or_hub_name(path: str) -> str:
    if path == "smollm2":
        return str(smollm2.folder())
    check_place(path)
    folder = Path(path).expanduser()
    return str(folder) if folder.is_dir() else path


def _tiny(options: dict[str, Any], quantised: bool) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    module, tokenizer = tiny.model(), tiny.tokenizer()
    if not quantised:
        return module.to(options["dtype"]), tokenizer
    with TemporaryDirectory() as folder:  # weights are quantised on their way from a file
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return _from_pretrained(folder, options)


def _from_pretrained(path: str, options: dict[str, Any]) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    source = _folder_or_hub_name(path)
    with _named(f"load {path!r} as a causal language model"):
        kind = auto_class(_config(source), path)
    with _named(f"load the tokenizer of {path!r}", "Put its files beside the weights: tokenizer.json and the like."):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    with (
        _named(f"load the weights of {path!r}", "If they are damaged, copy them again."),
        _quiet(),
    ):
        # quiet about weights that are left out, as those for images
        module, report = kind.from_pretrained(source, output_loading_info=True, trust_remote_code=False, **options)
    if report["missing_keys"]:  # transformers fills them with random numbers and a warning
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"model.path: {path!r} lacks {len(missing)} of its weights, {missing[0]} for one; restore them"
        )
    if further := _further_layers(report["unexpected_keys"], module):
        raise ModelError(
            f"model.path: {path!r} has weights of more layers than its config.json says, {further[0]} for one; "
            "restore config.json"
        )
    return module, tokenizer


def _further_layers(left_out: Iterable[str], module: nn.Module) -> list[str]:
    """Of the weights that were left out, those that are called as weights of the model but for a layer's number."""
    known = {_NUMBER.sub("N", name) for name, _ in module.named_parameters()}
    return sorted(name for name in left_out if _NUMBER.sub("N", name) in known)


def _config(source: str) -> Any:
    return AutoConfig.from_pretrained(source, trust_remote_code=False)  # None would ask at the terminal


@contextmanager
def _quiet() -> Iterator[None]:
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def _named(task: str, remedy: str = "") -> Iterator[None]:
    """What transformers raises, in one line, with the remedy; ``remedy`` is for a model that is a folder here."""
    try:
        yield
    except CapflError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "ignore_mismatched_sizes" in first:  # all else is in a report that was printed
            first = "its config.json says other shapes than its weights have"
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model.path: cannot {task}: it brings Python code of its own, which capfl never runs; give a copy "
                "that transformers reads without it (often a name that ends in -hf), or update transformers, which "
                "may have the architecture by now"
            ) from error
        built_in = "This very model is built in: --model smollm2. " if "SmolLM2-135M-Instruct" in task else ""
        raise ModelError(
            f"model.path: cannot {task}: {first}\n{built_in}"
            f"{remedy + ' Or give' if remedy else 'Give'} smollm2, tiny, a folder saved with save_pretrained, or a Hub "
            "name that this machine can reach."
        ) from error
