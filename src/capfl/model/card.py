"""What an adapter was trained for: its card, ``capfl.json`` beside PEFT's files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from capfl.config.schema import DataConfig
from capfl.errors import ConfigError, DataError, ModelError
from capfl.model.base import Base, same_weights
from capfl.types import Item, Scoring

CARD = "capfl.json"
FORMAT = 1
PROMPT = "capfl-1"  # the text that data.prompts.render makes of an item; another text needs another name


@dataclass(frozen=True)
class Card:
    """What has to be known of an adapter to use it.

    Attributes:
        base: path of the base model, as the run had it.
        digest: of the base's weights, see ``Base.digest``.
        scoring: how answers were compared.
        labels: all labels in the order of their letters; empty where tasks had none, or each its own.
        kinds: of the tasks, sorted: chat, choice, completion or label; empty: not known.
        prompt: name and version of the prompt template.
        max_length: tokens that a row was cut to.
        method, group, run: where it is from. ``group`` is None where clients have no groups.
    """

    base: str
    digest: str = ""
    scoring: Scoring = "letter"
    labels: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    prompt: str = PROMPT
    max_length: int = 256
    method: str = ""
    group: str | None = None
    run: str = ""

    def data_config(self, given: DataConfig) -> DataConfig:
        """``given`` with the labels, scoring and length that the adapter was trained with.

        Raises:
            ConfigError: ``given`` asks for other labels or another scoring.
        """
        fixed: dict[str, object] = {"scoring": self.scoring, "labels": self.labels or given.labels}
        for key, own in fixed.items():
            asked = getattr(given, key)
            if key in given.model_fields_set and asked is not None and asked != own:
                raise ConfigError(
                    f"data.{key}: the adapter was trained with {_listed(own)}, not with {_listed(asked)}; leave it out"
                )
        if given.labels and self.kinds and "label" not in self.kinds:
            raise ConfigError(
                f"data.labels: the adapter was trained on {' and '.join(self.kinds)} rows, without labels"
            )
        if "max_length" not in given.model_fields_set:
            fixed["max_length"] = self.max_length
        return given.model_copy(update=fixed)

    def check(self, base: Base) -> None:
        """Raises ModelError: ``base`` is not the model that the adapter was trained on."""
        same = same_weights(self.digest, base.digest)
        if same is False:
            raise ModelError(
                f"model.path: the adapter was trained on {self.base}, and {base.name} has other weights; "
                "give a model with the same weights, or leave it out"
            )
        if same is None and base.name != self.base:
            raise ModelError(
                f"model.path: the adapter was trained on {self.base}; whether {base.name} has the same weights cannot "
                "be seen at this precision, use model.dtype = float32 without quantization"
            )

    def check_items(self, items: Iterable[Item]) -> None:
        """Raises DataError: items have labels that the adapter was not trained with."""
        for item in items:
            if item.listed or not item.choices:
                continue
            known = not self.kinds or "label" in self.kinds
            fits = item.choices == self.labels if self.scoring == "letter" else set(item.choices) <= set(self.labels)
            if (self.labels and not fits) or not (known or self.scoring == "text"):
                raise DataError(
                    f"{item.question[:40]!r} has the labels {', '.join(item.choices)}; the adapter was trained "
                    f"{'with ' + ', '.join(self.labels) if self.labels else 'without labels'}, and knows no others"
                )


def card_of(
    base: Base, data: DataConfig, items: Iterable[Item], *, method: str = "", group: str | None = None, run: str = ""
) -> Card:
    """The card of an adapter that is trained on items as ``data`` says. Without items it does not say their kinds."""
    items = list(items)
    return Card(
        base=base.name,
        digest=base.digest,
        scoring=data.scoring,
        labels=data.labels or labels_of(items, data.scoring),
        kinds=tuple(sorted({kind_of(item) for item in items})),
        max_length=data.max_length,
        method=method,
        group=group,
        run=run,
    )


def kind_of(item: Item) -> str:
    """What an item asks for: chat, choice, completion or label."""
    if item.choices:
        return "choice" if item.listed else "label"
    return "chat" if item.messages else "completion"


def labels_of(items: Iterable[Item], scoring: Scoring) -> tuple[str, ...]:
    """All labels of items, in the order of their letters; none if a letter stands for several of them."""
    seen = dict.fromkeys(item.choices for item in items if item.choices and not item.listed)
    found = sorted(seen, key=len, reverse=True)
    every = tuple(dict.fromkeys(label for labels in found for label in labels))
    return () if scoring == "letter" and any(labels != every[: len(labels)] for labels in found) else every


def card_bytes(card: Card) -> bytes:
    """A card as the file has it."""
    return json.dumps({"format": FORMAT} | asdict(card), indent=1, ensure_ascii=False).encode()


def load_card(folder: Path) -> Card | None:
    """The card of the adapter in a folder; None: it has none, as one that was saved by others.

    Raises:
        ModelError: it cannot be read, or a later version of capfl wrote it.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
        version = found.pop("format")
        found["labels"], found["kinds"] = tuple(found["labels"]), tuple(found["kinds"])
        card = Card(**found) if version == FORMAT else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{path} is damaged: {error}; restore it, or remove it and give its settings as flags"
        ) from error
    if card is None or card.prompt != PROMPT:
        raise ModelError(f"{path} was written by another version of capfl; use that one to load the adapter")
    return card


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
