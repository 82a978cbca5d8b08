"""Adapters on disk in stock PEFT format, which any PEFT user can load, with a card beside it."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import peft
import safetensors
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from capfl import adapter as algebra
from capfl.errors import ModelError
from capfl.model.card import CARD, Card, card_bytes
from capfl.types import Adapter

_PREFIX = "base_model.model."


_NIL = 1e-6  # of the largest singular value: below, a patch in float32 has rounding errors alone


class PatchFactors:
    """Patches of the base as factors. Adapters of one round share a patch, so the last of each module is remembered."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def of(self, module: str, patch: Tensor) -> tuple[Tensor, Tensor]:
        """B (d_out, R) and A (R, d_in), float32, with product ``patch`` (d_out, d_in) and R its numerical rank."""
        if module not in self._found or not torch.equal(self._found[module][0], patch):
            self._found[module] = patch, *_factored(patch)
        return self._found[module][1:]


def save_adapter(
    adapter: Adapter,
    config: peft.LoraConfig,
    folder: Path,
    factors: PatchFactors | None = None,
    card: Card | None = None,
) -> None:
    """Write ``adapter_config.json``, ``adapter_model.safetensors`` and the card; each appears whole or not at all.

    Ranks are those of the tensors. Where a module's is not ``config.r`` its alpha follows, so that alpha / r stays. A
    patch of the base is more ranks of the same adapter, at most as many as the module's smaller side in all, so that it
    is to be had without capfl; the relative error of B A + W is about 1e-6 at most.
    """
    adapter = _unpatched(adapter, factors or PatchFactors())
    own = {module: rank for module, rank in algebra.ranks(adapter).items() if rank != config.r}
    alphas = {module: config.lora_alpha * rank / config.r for module, rank in own.items()}
    config = replace(config, rank_pattern=own, alpha_pattern=alphas)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, t in adapter.items():
        module, _, factor = name.rpartition(".")
        tensors[f"{_PREFIX}{module}.lora_{factor}.weight"] = t.contiguous()
    files = ["adapter_model.safetensors", "adapter_config.json"]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        save_file(tensors, Path(work, files[0]), metadata={"format": "pt"})
        config.save_pretrained(work)
        _sort_targets(Path(work, files[1]))
        if card is None:
            (folder / CARD).unlink(missing_ok=True)  # of the adapter that was here before
        else:
            Path(work, CARD).write_bytes(card_bytes(card))
            files.append(CARD)
        for file in files:
            os.replace(Path(work, file), folder / file)


def _sort_targets(path: Path) -> None:
    """PEFT writes a set, in another order in every process; sorted, equal adapters are equal files."""
    saved = json.loads(path.read_text())
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2, sort_keys=True))


def _unpatched(adapter: Adapter, factors: PatchFactors) -> Adapter:
    """The same update with the patch among the factors."""
    changed = algebra.unpatched(adapter)
    for module, down, up in algebra.factors(adapter):
        patch = adapter.get(f"{module}.W")
        if patch is None or not bool(patch.any()):
            continue
        more_up, more_down = factors.of(module, patch)
        if bool(up.any()) and bool(down.any()):
            more_up, more_down = torch.cat([up, more_up], dim=1), torch.cat([down, more_down])
        if len(more_down) > min(patch.shape):  # then the matrix itself is shorter
            more_up, more_down = _whole(up.double() @ down.double() + patch)
        changed |= {f"{module}.A": more_down, f"{module}.B": more_up}
    return changed


def _factored(patch: Tensor) -> tuple[Tensor, Tensor]:
    if patch.shape[0] > patch.shape[1]:
        up, down = _factored(patch.T)
        return down.T, up.T
    exact = patch.double()
    squares, left = torch.linalg.eigh(exact @ exact.T)  # left singular vectors, the largest last
    left = left[:, squares > _NIL**2 * squares[-1]]
    if left.shape[1] == len(patch):
        return _whole(exact)
    return left.float(), (left.T @ exact).float()


def _whole(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of full rank and an identity, the identity on its smaller side."""
    d_out, d_in = matrix.shape
    return (torch.eye(d_out), matrix.float()) if d_out <= d_in else (matrix.float(), torch.eye(d_in))


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
