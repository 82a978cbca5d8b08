"""Adapters on disk in stock PEFT format, which any PEFT user can load, with a card beside it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import peft
import torch
from peft.utils.other import get_pattern_key
from pydantic import AfterValidator, BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from capfl import adapter as algebra
from capfl.config.schema import ModelConfig
from capfl.config.section import Positive, PositiveFloat
from capfl.errors import ModelError
from capfl.files import write_atomically
from capfl.model.card import CARD, Card, card_bytes
from capfl.model.kinds import MERGE, refuse_other_kinds
from capfl.model.place import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_adapter
from capfl.types import Adapter

_PREFIX = "base_model.model."
_SLOW = re.compile(r"\)[*+{]|(?:[*+{].*){4}")  # of a pattern, for which Python could look until the end of days


def _is_quick(pattern: str) -> str:
    if _SLOW.search(pattern):
        raise ValueError(f"{pattern[:80]!r} repeats a group or repeats too often to be looked for")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern[:80]!r} is no pattern: {error}") from error
    return pattern


_Pattern = Annotated[str, AfterValidator(_is_quick)]


class _Settings(BaseModel):
    """Those of PEFT's settings that are computed with: the file may be anybody's."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    r: Positive = 8
    lora_alpha: PositiveFloat = 8
    rank_pattern: dict[_Pattern, Positive] | None = None
    alpha_pattern: dict[_Pattern, PositiveFloat] | None = None
    base_model_name_or_path: str | None = None


def save_adapter(adapter: Adapter, config: peft.LoraConfig, folder: Path, card: Card | None = None) -> None:
    """Write PEFT's two files and the card; each appears whole or not at all.

    Ranks are those of the tensors. Where a module's is not ``config.r`` its alpha follows, so that alpha / r stays. A
    module with a patch of the base is saved at full rank, B A + W as a matrix and an identity, so that it is to be had
    without capfl.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    tensors, ranks = {}, {}
    for module, down, up in algebra.factors(adapter):
        patch = adapter.get(f"{module}.W")
        if patch is not None and bool(patch.any()):
            up, down = _whole(up.double() @ down.double() + patch)
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = down.contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = up.contiguous()
        if len(down) != config.r:
            ranks[module] = len(down)
    alphas = {module: config.lora_alpha * rank / config.r for module, rank in ranks.items()}
    settings = replace(config, rank_pattern=ranks, alpha_pattern=alphas).to_dict()
    text = json.dumps(settings, indent=2, sort_keys=True, default=sorted)  # sets sorted: equal adapters are equal files
    write_atomically(folder / ADAPTER_WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / ADAPTER_CONFIG, text.encode())
    if card is None:
        (folder / CARD).unlink(missing_ok=True)  # of the adapter that was here before
    else:
        write_atomically(folder / CARD, card_bytes(card))


def _whole(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of full rank and an identity, the identity on its smaller side."""
    d_out, d_in = matrix.shape
    return (torch.eye(d_out), matrix.float()) if d_out <= d_in else (matrix.float(), torch.eye(d_in))


def load_adapter(folder: Path) -> tuple[Adapter, peft.LoraConfig]:
    """Read an adapter that capfl or PEFT saved: its factors, to be scaled by ``lora_alpha / r`` of its config.

    Modules with a rank or an alpha of their own, and rsLoRA's alpha / sqrt(r), keep their effect: B is rescaled.

    Raises:
        ModelError: the folder holds no LoRA adapter, or one that does more than add B A to linear layers.
    """
    check_adapter(folder)
    weights = folder / ADAPTER_WEIGHTS
    try:
        settings = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        _Settings.model_validate(settings)
        refuse_other_kinds(settings, str(folder))
        known = {field.name for field in fields(peft.LoraConfig)}
        config = peft.LoraConfig(**{name: value for name, value in settings.items() if name in known})
        tensors = load_file(weights)
    except (SafetensorError, RecursionError, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} holds a damaged adapter: {error}") from error
    adapter: Adapter = {}
    for key, t in tensors.items():
        module, _, factor = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if factor not in ("A", "B") or t.ndim != 2:
            raise ModelError(f"{weights}: tensor {key!r} is not a factor of a linear layer; {MERGE}")
        adapter[f"{module}.{factor}"] = t.float()
    for module, rank in algebra.ranks(adapter).items():
        own = config.alpha_pattern or {}
        alpha = own.get(get_pattern_key(own, module), config.lora_alpha)
        scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
        adapter[f"{module}.B"] *= scale / (config.lora_alpha / config.r)
    return adapter, config


def base_config(folder: Path, saved: peft.LoraConfig, card: Card | None, given: ModelConfig) -> ModelConfig:
    """The base model of the adapter in a folder: where ``given`` does not name one, that of the card or of PEFT.

    Raises:
        ModelError: nobody names one.
    """
    named = "path" in given.model_fields_set
    path = given.path if named else card.base if card else saved.base_model_name_or_path
    if not path:
        raise ModelError(f"{folder} does not name its base model; give it as --model-path")
    return given.model_copy(update={"path": path})
