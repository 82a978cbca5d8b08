"""An adapter merged into its base: a folder that transformers, and whatever reads its folders, loads by itself."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import peft

from capfl.config.schema import ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.files import AGAIN, in_the_way, naming
from capfl.model.base import load_base
from capfl.model.card import load_card
from capfl.model.export import base_config, load_adapter


def save_merged(folder: Path, given: ModelConfig, out: Path) -> None:
    """Write base + s B A with tokenizer and generation config to ``out``, in the precision of ``given``.

    Args:
        folder: of an adapter that capfl or PEFT saved.
        given: says which base, where the adapter does not, its precision and device.

    Raises:
        ConfigError: ``out`` is not empty, or the base is to be quantised.
        ModelError: the adapter or its base cannot be loaded, or they do not belong together.
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    if taken := in_the_way(out):
        raise ConfigError(f"--merged: {taken}")
    if given.quantization != "none":
        raise ConfigError("model.quantization: an adapter is merged into whole weights; leave quantization out")
    _, saved = load_adapter(folder)
    card = load_card(folder)
    base = load_base(base_config(folder, saved, card, given))
    if card:
        card.check(base)
    try:
        with warnings.catch_warnings():  # PEFT asks for a property under the name that transformers calls old
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapted = peft.PeftModel.from_pretrained(base.module, str(folder))
        merged = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder} cannot be merged into {base.name}: {error}") from error
    with naming(out, AGAIN):
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            work.chmod(0o777 & ~_umask())
            merged.save_pretrained(work)
            base.tokenizer.save_pretrained(work)
            for path in work.iterdir():  # safetensors lets nobody else read what it writes
                path.chmod(0o666 & ~_umask())
            os.replace(work, out)  # an empty folder that is there is replaced
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _umask() -> int:
    """What this process does not grant to others; mkdtemp grants them nothing."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
