"""Bases of 8 or 4 bits a weight, by bitsandbytes, on CUDA and on CPUs.

``8bit`` is LLM.int8 (Dettmers et al., arXiv:2208.07339): products of 8-bit integers with scales for each row of the
input and each column of the weight, and float16 for the columns of large inputs. ``4bit`` is NF4 (QLoRA, Dettmers et
al., arXiv:2305.14314) without double quantisation: weights are 16 values times a scale for each block of 64, and
products are taken in ``model.dtype``. Linear layers are quantised; embeddings, norms and the head keep ``model.dtype``.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from capfl.config.schema import ModelConfig
from capfl.errors import ConfigError, ModelError
from capfl.model.probe import apart

WRONG = 0.02  # of the norm; more than bfloat16 rounds


def loading(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that load a base quantised.

    Raises:
        ConfigError: bitsandbytes is not installed, or has no kernels for the device.
    """
    if device.type not in ("cuda", "cpu"):
        raise ConfigError(
            f"model.quantization: {config.quantization} is for CUDA and CPUs, and this run is on {device.type}; set "
            "model.device = cpu, or leave quantization out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization: {config.quantization} needs the package bitsandbytes; pip install 'capfl[quantized]'"
        )
    from transformers import BitsAndBytesConfig

    if config.quantization == "8bit":
        # it warns at every product that inputs become float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        dtype = getattr(torch, config.dtype)
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": how, "device_map": {"": device}}


def keep_trainable(module: nn.Module) -> None:
    """See that 4-bit layers pass gradients on for good.

    On CPUs with bfloat16 instructions bitsandbytes would repack the weights at the first pass without gradients, for a
    product that has no backward pass.
    """
    for layer in cast(Iterable[Any], module.modules()):
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def check_weights(module: nn.Module) -> None:
    """Are 4-bit weights given back as they are stored? One layer of each width is looked at.

    The kernel of bitsandbytes 0.50.2 for CPUs with AVX-512 takes the scale of another block where a layer's inputs are
    no multiple of the 64 values that share one; weights are then up to 40 % off.

    Raises:
        ModelError: they are not. Names the layer.
    """
    seen = set[int]()
    for name, layer in module.named_modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        width = getattr(layer, "in_features", 0)
        if state is None or width in seen:
            continue
        seen.add(width)
        if apart(_stored(layer.weight, state), _given_back(layer.weight, state)) > WRONG:
            raise ModelError(
                f"model.quantization: on this processor bitsandbytes gives back other 4-bit weights than it stores for "
                f"{name}, which has {width} inputs; use 8bit, or leave quantization out"
            )


def _stored(weight: Any, state: Any) -> torch.Tensor:
    """(out, in) weights from their codes, two in a byte, and the scale of each block."""
    packed = weight.data.flatten().view(torch.uint8)
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    scales = state.absmax.float().repeat_interleave(state.blocksize)[: len(codes)]
    found: torch.Tensor = state.code.float()[codes] * scales
    return found.reshape(state.shape)


def _given_back(weight: Any, state: Any) -> torch.Tensor:
    import bitsandbytes

    found: torch.Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, state)
    return found.float()
