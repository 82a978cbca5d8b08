"""Which settings make a run fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product

import torch

from capfl.config import Config
from capfl.errors import ConfigError
from capfl.model.base import pick_device
from capfl.report.plan import Advice
from capfl.usage import total_memory

ON_DEVICE = ("base", "training", "activations")  # what is on an accelerator, of the parts of the estimate
ABOVE = 1.3  # runs have peaked at so many times the estimate, at most

Estimated = Callable[[Config], Mapping[str, int]]


def advise(config: Config, estimated: Estimated, room: int | None = None) -> Advice:
    """Does a run fit into memory, and if not, with which settings does it?

    Settings are tried in the order of what they cost: fewer rows scored at once and a step in more parts, which change
    no result; checkpointing, which takes time; and last a base in half precision.

    Args:
        estimated: the parts of ``plan.memory.estimate`` for a config.
        room: bytes that there are; by default what this machine has, or its accelerator if the run is on one.
    """
    try:
        device = pick_device(config.model.device).type
    except ConfigError:
        device = "elsewhere"
    if room is None:
        room = {"cpu": total_memory, "cuda": _cuda_memory, "mps": total_memory}.get(device, lambda: None)()
    if room is None:
        return Advice(None, {}, 0, fits=True)

    def needed(changed: Config) -> int:
        found = estimated(changed)
        return sum(found[name] for name in ON_DEVICE) if device == "cuda" else found["total"]

    least = Advice(room, {}, needed(config), fits=False)
    for settings in _settings(config):
        advice = Advice(room, settings, needed(changed(config, settings)), fits=True)
        if ABOVE * advice.bytes <= room:
            return advice
        if advice.bytes < least.bytes:
            least = Advice(room, settings, advice.bytes, fits=False)
    return least


def changed(config: Config, settings: Mapping[str, object]) -> Config:
    """A config with some of its keys changed."""
    for key, value in settings.items():
        section, _, name = key.partition(".")
        config = config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})
    return config


def _cuda_memory() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def _settings(config: Config) -> Iterator[dict[str, object]]:
    """No change, and then every change that takes less memory, those that cost least first."""
    model, train, evaluation = config.model, config.train, config.evaluation
    choices: dict[str, list[object]] = {
        "model.dtype": [model.dtype, "bfloat16"] if model.dtype == "float32" else [model.dtype],
        "train.checkpointing": [False, True] if not train.checkpointing else [True],
        "train.accumulate": [train.accumulate * 2**n for n in range(9) if train.accumulate * 2**n <= train.batch_size],
        "evaluation.batch_size": [evaluation.batch_size // 2**n for n in range(9) if evaluation.batch_size >= 2**n],
    }
    for values in product(*choices.values()):
        yield {key: value for (key, own), value in zip(choices.items(), values, strict=True) if value != own[0]}
