"""An adapter from disk, ready to be used: what `capfl eval` and ``capfl.load`` do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from capfl import adapter as algebra
from capfl.config import Config, load_config
from capfl.config.keys import flags
from capfl.config.schema import DataConfig, LoraConfig
from capfl.data import load_items
from capfl.data.formats import read_held
from capfl.errors import ConfigError, DataError, ModelError
from capfl.federation import tokenised
from capfl.model.base import load_base
from capfl.model.card import Card, load_card
from capfl.model.export import load_adapter
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.score import Scorable, options, score
from capfl.types import Adapter, Item

Rows = Iterable[Mapping[str, Any]]


class LoadedAdapter:
    """A base model with one adapter.

    Attributes:
        model: the frozen base, adapted.
        adapter: its values, in the shapes of ``model``.
        card: what it was trained for; None if it was saved by others.
        data: labels, scoring and length by which rows are read.
    """

    def __init__(
        self, model: AdaptedModel, adapter: Adapter, card: Card | None, data: DataConfig, batch_size: int = 32
    ) -> None:
        self.model, self.adapter, self.card, self.data = model, adapter, card, data
        self._batch_size = batch_size

    def score(self, rows: Rows | Sequence[Item]) -> dict[str, Any]:
        """Accuracy and loss on rows as in a JSONL file: with text and label, question and choices, or a completion.

        Returns:
            ``items``, their number; ``metric``, accuracy of options or token_accuracy of completions; ``accuracy``;
            ``loss``, nats an item or a token; ``base_accuracy``, without the adapter; ``chance``, of blind guessing.

        Raises:
            DataError: rows that cannot be used, have labels that the adapter was not trained with, or are of two kinds.
            ModelError: the model's logits are not finite.
        """
        held: list[Any] = list(rows)
        given = all(isinstance(row, Item) for row in held)
        items: list[Item] = held if given else read_held("rows", held, self.data.labels or ())
        self._check(items)
        chances = [1 / len(item.choices) for item in items if item.choices]
        data = Scorable(tokenised(items, self.data, self.model))
        with HiddenCache(2**30) as cache:
            own = score(self.model, cache, data, self.adapter, self._batch_size)
            base = score(self.model, cache, data, self.model.initial_adapter(0), self._batch_size)
        self._check_finite(own.nll + base.nll)
        return {
            "items": len(items),
            "metric": "accuracy" if chances else "token_accuracy",
            "accuracy": own.accuracy,
            "loss": own.loss,
            "base_accuracy": base.accuracy,
            "chance": fmean(chances) if chances else None,
        }

    def _check_finite(self, *values: float) -> None:
        if not all(map(math.isfinite, values)):
            raise ModelError(
                f"{self.model.base.name}: its logits are not finite; use model.dtype = float32 or bfloat16, "
                "or an adapter whose training did not diverge"
            )

    def _check(self, items: Sequence[Item]) -> None:
        """Raises DataError: items are of two kinds, or have labels that the adapter was not trained with."""
        if len({bool(item.choices) for item in items}) > 1:
            raise DataError("some items have options and others are completions; score them apart")
        labels = self.data.labels or ()
        for item in items if self.card else ():
            if self.data.scoring == "letter":
                fits = item.choices == labels
            else:
                fits = not labels or set(item.choices) <= set(labels)
            if item.choices and not item.listed and not fits:
                raise DataError(
                    f"{item.question[:40]!r} has the labels {', '.join(item.choices)}; the adapter was trained "
                    f"{'with ' + ', '.join(labels) if labels else 'without labels'}, and knows no others"
                )

    def predict(self, rows: Iterable[str | Mapping[str, Any]]) -> list[str]:
        """The label of each text, or the chosen option of each question.

        Args:
            rows: texts, or dicts with ``text``; of multiple choice, dicts with ``question`` and ``choices``.

        Raises:
            DataError: a row has none of these, or the adapter has no labels to choose a text's from.
            ModelError: the model's logits are not finite.
        """
        items = [self._asked(number, row) for number, row in enumerate(rows, start=1)]
        data = Scorable(tokenised(items, self.data, self.model))
        found = options(self.model, HiddenCache(0), data, self.adapter, self._batch_size)
        self._check_finite(*(float(own.sum()) for own in found))
        return [item.choices[int(own.argmax())] for item, own in zip(items, found, strict=True)]

    def _asked(self, number: int, row: str | Mapping[str, Any]) -> Item:
        values = {"text": row} if isinstance(row, str) else row
        if "question" in values and "choices" in values:
            return Item(str(values["question"]), tuple(map(str, values["choices"])))
        if "text" not in values:
            raise DataError(
                f"row {number}: give a text, or question and choices; it has {', '.join(values) or 'nothing'}"
            )
        if not self.data.labels:
            raise DataError(
                f"row {number}: the adapter has no labels to choose a text's from; give question and choices"
            )
        return Item(str(values["text"]), self.data.labels, listed=False)


def load(folder: Path | str, **keys: Any) -> LoadedAdapter:
    """An adapter that capfl or PEFT saved, with its base model.

        adapter = capfl.load("runs/first/adapters/clients/north")
        adapter.predict(["My card does not work"])
        adapter.score([{"text": "My card does not work", "label": "cards"}])

    Args:
        keys: of the sections ``model`` and ``data`` of a config, by their flags with underscores: ``model`` is the base
            where it is elsewhere than it was in the run, ``dtype`` its precision. An adapter without a card, saved by
            others, needs ``labels`` and ``scoring``.

    Raises:
        ConfigError: a key that there is not, or one that contradicts the adapter's card.
        ModelError: the folder holds no adapter, or the base is not the one that it was trained on.
    """
    known = flags()
    if unknown := [key for key in keys if key not in known]:
        raise ConfigError(f"there is no key {unknown[0]!r}; `capfl keys` lists them")
    return open_adapter(Path(folder), load_config(None, {known[key]: value for key, value in keys.items()}))


def open_adapter(folder: Path, config: Config) -> LoadedAdapter:
    """As ``load``; ``config`` says what its card does not, and may not contradict it."""
    adapter, saved = load_adapter(folder)
    card = load_card(folder)
    data = card.data_config(config.data) if card else config.data
    given = "path" in config.model.model_fields_set
    path = config.model.path if given else card.base if card else saved.base_model_name_or_path
    if not path:
        raise ModelError(f"{folder} does not say what its base model is; give it as --model-path")
    base = load_base(config.model.model_copy(update={"path": path}))
    if card:
        card.check(base)
    ranks = algebra.ranks(adapter)
    rank = max(saved.r, *ranks.values())
    try:
        model = AdaptedModel(base, LoraConfig(rank=rank, alpha=saved.lora_alpha * rank / saved.r), list(ranks))
        adapter = algebra.padded(adapter, model.initial_adapter(0))
    except (ValueError, ModelError) as error:
        raise ModelError(f"{folder}: {error}") from error
    return LoadedAdapter(model, adapter, card, data, config.evaluation.batch_size)


def score_adapter(folder: Path, config: Config, only: Sequence[str] = ()) -> dict[str, Any]:
    """What `capfl eval` does: as ``LoadedAdapter.score``, on the items of ``config.data``.

    Args:
        only: ``field=value`` pairs; items without them are left out.

    Raises:
        ConfigError: the config names no data, or contradicts the adapter's card.
        ModelError: as ``load``.
        DataError: no item is left, or as ``LoadedAdapter.score``.
    """
    if "sets" not in config.data.model_fields_set:
        raise ConfigError("--data: say what to score the adapter on: a JSONL file, or a data set such as helpdesk")
    loaded = open_adapter(folder, config)
    try:
        items = load_items(loaded.data, config.seed)
    except DataError as error:
        own = loaded.card.labels if loaded.card else ()
        trained = f"\n{folder} was trained with the labels {', '.join(own)}, and knows no others"
        raise DataError(f"{error}{trained if own and 'data.labels' in str(error) else ''}") from error
    wanted = dict(pair.partition("=")[::2] for pair in only)
    items = [item for item in items if all(item.fields.get(key) == value for key, value in wanted.items())]
    if not items:
        raise DataError(f"--only {' '.join(only)}: no item has these fields; the fields of an item are its row's keys")
    return loaded.score(items)
