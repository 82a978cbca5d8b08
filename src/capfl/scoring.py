"""An adapter from disk, ready to be used: what ``capfl.load``, `capfl eval` and `capfl generate` do."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from capfl import adapter as algebra
from capfl.config import Config, load_config
from capfl.config.data import DataConfig
from capfl.config.keys import flags, meant
from capfl.config.load import changed
from capfl.config.names import did_you_mean
from capfl.config.schema import LoraConfig
from capfl.data import Split, load_items, render
from capfl.data.asked import held_asked, held_choices
from capfl.data.formats import read_held
from capfl.data.tasks import check_tasks
from capfl.errors import ConfigError, DataError, ModelError
from capfl.federation import Federation, tokenised
from capfl.metrics import Compare, metric, named, require
from capfl.model.base import load_base
from capfl.model.card import Card, load_card
from capfl.model.export import base_config, load_adapter
from capfl.model.generate import generate
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.score import Scorable, options
from capfl.model.tokens import prompt_ids
from capfl.types import Adapter, Item

Rows = Iterable[Mapping[str, Any]]
ROWS = "rows"  # the one client of the rows that are scored
_UNCUT = sys.maxsize  # tokens of a prompt: what does not fit is refused, not cut


class LoadedAdapter:
    """A base model with one adapter.

    Attributes:
        model: the frozen base, adapted.
        adapter: its values, in the shapes of ``model``.
        card: what it was trained for; None if it was saved by others.
        data: labels, scoring and length by which rows are read.
        config: how it is measured, where nothing else is asked for.
    """

    def __init__(
        self, model: AdaptedModel, adapter: Adapter, card: Card | None, data: DataConfig, config: Config
    ) -> None:
        self.model, self.adapter, self.card, self.data, self.config = model, adapter, card, data, config
        self._batch_size = config.evaluation.batch_size

    def score(
        self, rows: Rows | Sequence[Item], metrics: Sequence[str | Compare] | None = None, **settings: Any
    ) -> dict[str, Any]:
        """Scores on rows as in a JSONL file: with text and label, question and choices, or a completion.

        Args:
            metrics: names as in ``evaluation.metrics``, or functions f(answer, right answer, other fields of the row)
                -> between 0 and 1; by default those of the rows' task.
            settings: other keys of the section ``evaluation``: ``generated`` and ``max_new_tokens``.

        Returns:
            ``items``, their number; ``generated``, of those that an answer was written to; ``metrics`` and ``base``,
            each metric's value with the adapter and without; ``loss`` and ``base_loss``, nats an item or a token;
            ``chance``, the accuracy of blind guessing.

        Raises:
            ConfigError: a metric that there is not, or a setting that is wrong.
            DataError: rows that cannot be used, have labels that the adapter was not trained with, or are of two kinds.
            ModelError: the model's logits are not finite.
        """
        given = {**settings, **({} if metrics is None else {"metrics": named(metrics)})}
        evaluation = changed(self.config, {f"evaluation.{key}": value for key, value in given.items()}).evaluation
        held: list[Any] = list(rows)
        are_items = bool(held) and all(isinstance(row, Item) for row in held)
        items: list[Item] = held if are_items else read_held("rows", held, self.data.labels or (), self.data.columns)
        self._check(items)
        require(evaluation.metrics)
        config = self.config.model_copy(update={"data": self.data, "evaluation": evaluation})
        splits = {ROWS: Split([], [], list(range(len(items))))}
        check_tasks(items, splits, evaluation.metrics)
        with HiddenCache(2**30) as cache:
            federation = Federation(config, items, splits, self.model, cache)
            found = federation.evaluate(ROWS, {"own": self.adapter, "base": self.model.initial_adapter(0)})
        own, base = found["own"], found["base"]
        self._check_finite(own.loss.sum + base.loss.sum)
        chances = [1 / len(item.choices) for item in items if item.choices]
        asked = [tally.count for name, tally in own.metrics.items() if metric(name).compare]
        return {
            "items": len(items),
            "generated": max(asked, default=0),
            "metrics": {name: metric(name).value(tally) for name, tally in own.metrics.items()},
            "base": {name: metric(name).value(tally) for name, tally in base.metrics.items()},
            "loss": own.loss.mean,
            "base_loss": base.loss.mean,
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
                place = item.place or f"{item.question[:40]!r}"
                trained = f"with {', '.join(labels)}, and knows no others" if labels else "without labels"
                remedy = "give rows of these" if labels else "give rows of the kind that it was trained on"
                raise DataError(
                    f"{place} has the labels {', '.join(item.choices)}; the adapter was trained {trained}; {remedy}"
                )

    def predict(self, rows: Iterable[str | Mapping[str, Any]] | Sequence[Item]) -> list[str]:
        """The label of each text, or the chosen option of each question.

        Args:
            rows: texts, or dicts with ``text``; of multiple choice, dicts with ``question`` and ``choices``; or items,
                as a run has them.

        Raises:
            DataError: a row has none of these, or the adapter has no labels to choose a text's from.
            ModelError: the model's logits are not finite.
        """
        held: list[Any] = list(rows)
        are_items = bool(held) and all(isinstance(row, Item) for row in held)
        items: list[Item] = held if are_items else held_choices(held, self.data.labels or (), self.data.columns)
        data = Scorable(tokenised(items, self.data, self.model))
        found = options(self.model, HiddenCache(0), data, self.adapter, self._batch_size)
        self._check_finite(*(float(own.sum()) for own in found))
        return [item.choices[int(own.argmax())] for item, own in zip(items, found, strict=True)]

    def generate(
        self,
        rows: Iterable[str | Mapping[str, Any]] | Sequence[Item],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        base: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:
        """The text that the model writes after each prompt, until it ends its answer.

            adapter.generate(["Translate into SQL: how many parcels are late?\\n"])
            adapter.generate([{"messages": [{"role": "user", "content": "Where is it?"}]}], temperature=0.7)

        Args:
            rows: texts; dicts with ``prompt`` or ``messages``, as in training, whose answers are not looked at; or
                items, as a run has them.
            max_new_tokens: most tokens of an answer.
            temperature: 0 takes the likeliest token each time; above that tokens are drawn.
            top_p: tokens are drawn from the fewest likeliest ones with this probability together.
            seed: of what is drawn. Each row has random numbers of its own, by its place among the rows.
            base: answer without the adapter.
            on_text: is called with the answer's text as it comes; for one row alone.

        Raises:
            DataError: rows that cannot be used, or prompts that do not fit into the model's positions; none is cut.
            ConfigError: a setting outside its range.
        """
        held: list[Any] = list(rows)
        items: list[Item] = held if all(isinstance(row, Item) for row in held) else held_asked(held, self.data.columns)
        tokenizer, scoring, date = self.model.base.tokenizer, self.data.scoring, self.data.date
        found = generate(
            self.model,
            self.model.initial_adapter(0) if base else self.adapter,
            [prompt_ids(render(item, scoring), tokenizer, _UNCUT, date) for item in items],
            max_new_tokens=max_new_tokens,
            batch_size=self._batch_size,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            on_text=on_text,
            places=[item.place or f"prompt {number}" for number, item in enumerate(items, start=1)],
        )
        return [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in found]


def load(folder: Path | str, **keys: Any) -> LoadedAdapter:
    """An adapter that capfl or PEFT saved, with its base model.

        adapter = capfl.load("runs/first/adapters/clients/north")
        adapter.predict(["My card does not work"])
        adapter.score([{"text": "My card does not work", "label": "cards"}])
        adapter.generate(["Translate into SQL: how many parcels are late?"])  # trained on prompts and completions

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
        hint = did_you_mean(meant(unknown[0])) or ";"
        raise ConfigError(f"there is no key {unknown[0]!r}{hint} `capfl keys` lists them")
    return open_adapter(Path(folder), load_config(None, {known[key]: value for key, value in keys.items()}))


def open_adapter(folder: Path, config: Config) -> LoadedAdapter:
    """As ``load``; ``config`` says what its card does not, and may not contradict it."""
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    adapter, saved = load_adapter(folder)
    card = load_card(folder)
    data = card.data_config(config.data) if card else config.data
    base = load_base(base_config(folder, saved, card, config.model))
    if card:
        card.check(base)
    ranks = algebra.ranks(adapter)
    rank = max(ranks.values(), default=1)  # saved.r may be any number
    try:
        model = AdaptedModel(base, LoraConfig(rank=rank, alpha=saved.lora_alpha * rank / saved.r), list(ranks))
        adapter = algebra.padded(adapter, model.initial_adapter(0))
    except (ValueError, ModelError) as error:
        raise ModelError(f"{folder}: {error}") from error
    return LoadedAdapter(model, adapter, card, data, config)


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
        raise ConfigError("--data is missing: give a file of rows, or a data set such as helpdesk, to score on")
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
