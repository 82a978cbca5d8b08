"""What an adapter was trained for: its card, ``capfl.json`` beside PEFT's files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from capfl.config.data import DataConfig
from capfl.errors import ConfigError, ModelError
from capfl.model.base import Base
from capfl.types import Item, Scoring, TooLong, Turns

CARD = "capfl.json"
PROMPT = "capfl-1"  # the text that data.prompts.render makes of an item; another text needs another name


@dataclass(frozen=True)
class Card:
    """What has to be known of an adapter to use it.

    Attributes:
        base: path of the base model, as the run had it.
        digest: of the base's weights, see ``Base.digest``.
        scoring: how answers were compared.
        labels: all labels in the order of their letters; empty where tasks had none, or each its own.
        prompt: name and version of the prompt template.
        max_length: tokens that a row was cut to, and ``too_long`` how.
        assistant_turns: answers of chats that were trained on.
        date: as chat templates wrote it that write today's.
        method, group, run: where it is from. ``group`` is None where clients have no groups.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    base: str
    digest: str
    scoring: Scoring = "letter"
    labels: tuple[str, ...] = ()
    prompt: str = PROMPT
    max_length: Annotated[int, Field(ge=8)] = 256
    too_long: TooLong = "cut-prompt"
    assistant_turns: Turns = "all"
    date: str | None = None
    method: str = ""
    group: str | None = None
    run: str = ""

    def data_config(self, given: DataConfig) -> DataConfig:
        """``given`` with the labels and scoring that the adapter was trained with, and its length, turns and date.

        Raises:
            ConfigError: ``given`` asks for other labels or another scoring.
        """
        own: dict[str, Any] = {"scoring": self.scoring}
        if self.labels:
            own["labels"] = self.labels
        for key, trained in own.items():
            asked = getattr(given, key)
            if key in given.model_fields_set and asked is not None and asked != trained:
                raise ConfigError(
                    f"data.{key}: the adapter was trained with {_listed(trained)}, not with {_listed(asked)}; leave it "
                    "out"
                )
        for key in ("max_length", "too_long", "assistant_turns", "date"):
            if key not in given.model_fields_set:
                own[key] = getattr(self, key)
        return given.model_copy(update=own)

    def check(self, base: Base) -> None:
        """Raises ModelError: ``base`` is not the model that the adapter was trained on."""
        if self.digest.partition(":")[0] != base.digest.partition(":")[0]:  # of other precisions
            if base.name != self.base:
                raise ModelError(
                    f"model.path: the adapter was trained on {self.base}; at this precision capfl cannot check "
                    f"whether {base.name} has the same weights, use model.dtype = float32 without quantization"
                )
        elif self.digest != base.digest:
            raise ModelError(
                f"model.path: the adapter was trained on {self.base}, and {base.name} has other weights; "
                "give a model with the same weights, or leave it out"
            )


def card_of(
    base: Base, data: DataConfig, items: Iterable[Item], *, method: str = "", group: str | None = None, run: str = ""
) -> Card:
    """The card of an adapter that is trained on items as ``data`` says."""
    return Card(
        base=base.name,
        digest=base.digest,
        scoring=data.scoring,
        labels=data.labels or labels_of(items, data.scoring),
        max_length=data.max_length,
        too_long=data.too_long,
        assistant_turns=data.assistant_turns,
        date=data.date,
        method=method,
        group=group,
        run=run,
    )


def labels_of(items: Iterable[Item], scoring: Scoring) -> tuple[str, ...]:
    """All labels of items, in the order of their letters; none if a letter stands for several of them."""
    seen = dict.fromkeys(item.choices for item in items if item.choices and not item.listed)
    found = sorted(seen, key=len, reverse=True)
    every = tuple(dict.fromkeys(label for labels in found for label in labels))
    return () if scoring == "letter" and any(labels != every[: len(labels)] for labels in found) else every


def card_bytes(card: Card) -> bytes:
    """A card as the file has it."""
    return json.dumps(asdict(card), indent=1, ensure_ascii=False).encode()


def load_card(folder: Path) -> Card | None:
    """The card of the adapter in a folder; None: it has none, as one that was saved by others.

    Raises:
        ModelError: it cannot be read, or another version of capfl wrote it.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        card = TypeAdapter(Card).validate_json(path.read_bytes())
    except ValidationError as error:  # the file may be anybody's, and so may what is in it
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(
            f"{path} is damaged: {where + ': ' if where else ''}{first['msg']}; restore it, or remove it and give its "
            "settings as flags"
        ) from error
    if card.prompt != PROMPT:
        raise ModelError(f"{path} was written by another version of capfl; use that one to load the adapter")
    return card


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
