"""Score an adapter from disk, on any data set: what `capfl eval` does."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capfl import adapter as algebra
from capfl.config import Config
from capfl.config.schema import LoraConfig
from capfl.data import load_items, render
from capfl.errors import DataError, ModelError
from capfl.model.base import load_base
from capfl.model.export import load_adapter
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.score import Scorable, score
from capfl.model.tokens import encode


def score_adapter(folder: Path, config: Config, only: Sequence[str] = ()) -> dict[str, Any]:
    """Accuracy of an adapter and of its base on the items of ``config.data``.

    Args:
        only: ``field=value`` pairs; items without them are left out.

    Raises:
        ModelError: the folder holds no adapter that fits the model it names.
        DataError: no item is left.
    """
    adapter, saved = load_adapter(folder)
    if isinstance(saved.target_modules, str) or saved.target_modules is None:
        raise ModelError(f"{folder}: target_modules is a pattern; capfl reads lists of names")
    modules = {name.rpartition(".")[0] for name in adapter}
    name = saved.base_model_name_or_path or config.model.path
    layers = sorted({int(part) for module in modules for part in module.split(".") if part.isdigit()})
    rank = max(saved.r, *algebra.ranks(adapter).values())
    model = AdaptedModel(
        load_base(config.model.model_copy(update={"path": name})),
        LoraConfig(
            rank=rank,
            alpha=saved.lora_alpha * rank / saved.r,
            targets=tuple(sorted({module.rpartition(".")[2] for module in modules})),
            layers=",".join(map(str, layers)),
        ),
    )
    try:
        adapter = algebra.padded(adapter, model.initial_adapter(0))
    except ValueError as error:
        raise ModelError(f"{folder}: {error}") from error
    wanted = dict(pair.partition("=")[::2] for pair in only)
    items = [i for i in load_items(config.data, config.seed) if all(i.fields.get(k) == v for k, v in wanted.items())]
    if not items:
        raise DataError(f"--only {' '.join(only)}: no item has these fields; the fields of an item are its row's keys")
    scoring = config.data.scoring
    tokenizer = model.base.tokenizer
    examples = [encode(render(item, scoring), scoring, tokenizer, config.data.max_length) for item in items]
    data = Scorable("eval", examples)
    with HiddenCache(config.runtime.cache, int(config.runtime.cache_gib * 2**30)) as cache:
        own = score(model, cache, data, adapter, config.evaluation.batch_size)
        base = score(model, cache, data, model.initial_adapter(0), config.evaluation.batch_size)
    choices = [len(item.choices) for item in items if item.choices]
    return {
        "items": len(items),
        "metric": "accuracy" if choices else "token_accuracy",
        "accuracy": own.accuracy,
        "loss": own.loss,
        "base_accuracy": base.accuracy,
        "chance": statistics.fmean(1 / n for n in choices) if choices else None,
    }
