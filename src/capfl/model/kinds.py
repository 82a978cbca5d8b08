"""Kinds of LoRA: those that add s B A to linear layers and nothing else, and all others, which are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capfl.errors import ModelError

MERGE = "merge it into its base with PEFT's merge_and_unload, and give that as model.path"

PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")  # that leave the base as it is
HARMLESS = {  # settings that change no score of plain LoRA, or that ``load_adapter`` follows
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core",
    "qalora_group_size", "eva_config", "corda_config", "lora_ga_config", "loftq_config", "velora_config",
    "ensure_weight_tying",
}  # fmt: skip
NAMES = {
    "use_dora": "DoRA, which scales the columns of the base's weights",
    "alora_invocation_tokens": "aLoRA, which acts after certain tokens only",
    "modules_to_save": "LoRA with whole modules beside it (modules_to_save)",
    "layer_replication": "LoRA on repeated layers (layer_replication)",
    "trainable_token_indices": "LoRA with embeddings of some tokens beside it (trainable_token_indices)",
    "target_parameters": "LoRA on parameters of experts (target_parameters)",
    "lora_bias": "LoRA with biases (lora_bias)",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing between adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "LoRA on layers of Megatron",
}


def refuse_other_kinds(settings: Mapping[str, Any], where: str) -> None:
    """See that an adapter is LoRA whose scores are those of B A on linear layers, by its ``adapter_config.json``.

    A setting that is not known is refused unless it is off: it may be of a newer PEFT.

    Raises:
        ModelError: it is another kind. Names it.
    """
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{where} holds a {kind} adapter; capfl reads LoRA only: {MERGE}")
    init = settings.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        raise ModelError(
            f"{where} was started from the base's own weights ({init}), and is right on a changed base alone; "
            f"{MERGE}, or save it as plain LoRA with PEFT's path_initial_model_for_weight_conversion"
        )
    if settings.get("bias", "none") != "none":
        raise ModelError(f"{where} holds LoRA with biases of the base (bias = {settings['bias']}); {MERGE}")
    for name, value in settings.items():
        if name in HARMLESS or name == "bias" or not value:
            continue
        what = NAMES.get(name, f"LoRA with {name} = {value}, which this version of capfl does not know")
        merge = "use it with PEFT itself" if name == "alora_invocation_tokens" else MERGE
        raise ModelError(f"{where} holds {what}; {merge}")
