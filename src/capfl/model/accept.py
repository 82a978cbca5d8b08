"""Which models can be a base, as far as their configs say. Nothing is loaded but config.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers import __version__ as transformers_version

from capfl.errors import ConfigError, ModelError

OTHER_HEAD = re.compile(  # what a class is called whose head predicts no next token
    r"For(?:\w*Classification|QuestionAnswering|MaskedLM|PreTraining|MultipleChoice|NextSentencePrediction|\w*Retrieval"
    r"|RewardModel\w*)$|(?:RewardModel|TextEncoder)$"
)
LONGER = ("linear", "dynamic", "yarn", "longrope")  # ways to scale rotary positions beyond those of pre-training


def auto_class(config: Any, name: str) -> Any:
    """The class of transformers that loads a base with this config: a causal model, or one of texts and images.

    Of the latter only the text part is used. It is loaded as a whole, so that its modules have the names by which PEFT
    finds them.

    Args:
        name: of the model, for error messages.

    Raises:
        ModelError: it is no causal language model. Says what it is, and what to use.
    """
    kind = getattr(config, "model_type", "") or type(config).__name__
    if any(part.is_encoder_decoder for part in _parts(config)):
        raise ModelError(
            f"model.path: {name} ({kind}) is an encoder-decoder, whose decoder reads what an encoder makes of another "
            "text; give a causal language model (decoder only), such as smollm2"
        )
    for architecture in getattr(config, "architectures", None) or ():
        if OTHER_HEAD.search(architecture):
            raise ModelError(
                f"model.path: {name} is a {architecture}, whose head predicts no next token; give the causal language "
                "model that it was made from"
            )
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True):
            raise ModelError(
                f"model.path: {name} ({kind}) is an encoder: every token sees those that follow it; give a causal "
                "language model (decoder only), such as smollm2"
            )
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelError(
        f"model.path: {name} is of the type {kind}, of which transformers {transformers_version} has no causal "
        "language model; give one that it has, or update transformers"
    )


def positions(config: Any) -> int | None:
    """Tokens of the longest text that a model has positions for; None where its layers need no positions."""
    text = text_config(config)
    for key in ("max_position_embeddings", "max_target_positions", "max_seq_len", "max_seq_length"):
        own = getattr(text, key, None)
        if isinstance(own, int) and own > 0:
            return max(own, *(_scaled(own, scaling) for scaling in _scalings(text)), 0)
    return None


def check_positions(config: Any, max_length: int, name: str) -> None:
    """Raises ConfigError: rows of ``data.max_length`` tokens are longer than a model has positions for."""
    limit = positions(config)
    if limit is not None and max_length > limit:
        raise ConfigError(
            f"data.max_length: rows may have {max_length} tokens, and {name} has positions for {limit}; "
            f"use data.max_length = {limit} or less"
        )


def text_config(config: Any) -> Any:
    """The part of a config that is about texts; all of it where the model reads nothing else."""
    try:
        return config.get_text_config(decoder=True)
    except ValueError:  # several of them
        return config


def _parts(config: Any) -> Iterator[Any]:
    yield config
    if (text := text_config(config)) is not config and hasattr(text, "is_encoder_decoder"):
        yield text


def _scalings(config: Any) -> Iterator[dict[str, Any]]:
    """How rotary positions are scaled; layers of several kinds may each have a way of their own."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if isinstance(given, dict):
        yield from [one for one in given.values() if isinstance(one, dict)] or [given]


def _scaled(own: int, scaling: dict[str, Any]) -> int:
    """Positions that there are with a scaling. Configs say either the scaled number, or the one before."""
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in LONGER or not isinstance(factor, int | float):
        return own
    return int(factor * (scaling.get("original_max_position_embeddings") or own))
