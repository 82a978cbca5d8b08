"""Answers that a model writes after prompts whose right answers are known, and what metrics make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from capfl import adapter as algebra
from capfl.metrics import metric
from capfl.model.generate import generate
from capfl.model.hidden import HiddenCache
from capfl.model.lora import AdaptedModel
from capfl.model.text import Ids
from capfl.types import Adapter, Tally

MOST_NEW = 256  # tokens of an answer, where no number is asked for


@dataclass(frozen=True)
class Asked:
    """A prompt, and what answers to it are compared with.

    Attributes:
        prompt: token ids (n,) int32.
        right: the right answer.
        tokens: how many it has.
        fields: of the row, what else it has.
        text: the prompt, for people.
    """

    prompt: Ids
    right: str
    tokens: int
    fields: Mapping[str, str] = field(default_factory=dict)
    text: str = ""


def room(asked: Sequence[Asked], max_new_tokens: int | None) -> int:
    """Tokens at which an answer is cut: those of the longest right one, 256 at most, if no number is given."""
    return max_new_tokens or max(1, min(MOST_NEW, max((one.tokens for one in asked), default=1)))


def write_answers(
    model: AdaptedModel,
    adapter: Adapter,
    asked: Sequence[Asked],
    max_new_tokens: int | None,
    batch_size: int,
    cache: HiddenCache | None = None,
) -> list[str]:
    """The likeliest answer to each prompt, token by token, as text.

    Args:
        cache: keeps the answers of an adapter that changes nothing, which are the base's.
    """
    new = room(asked, max_new_tokens)
    positions = int(cast(Any, model.base.module).config.get_text_config().max_position_embeddings)
    prompts = [one.prompt[-max(1, positions - new) :] for one in asked]  # a prompt that is too long loses its beginning

    def write() -> list[list[int]]:
        return generate(model, adapter, prompts, max_new_tokens=new, batch_size=batch_size)

    if asked and cache is not None and algebra.is_idle(adapter):
        model.write(adapter)
        found = cache.answers(model, prompts, f"{new} new tokens in batches of {batch_size} ", write)
    else:
        found = write()
    return [str(model.base.tokenizer.decode(ids, skip_special_tokens=True)) for ids in found]


def compared(asked: Sequence[Asked], answers: Sequence[str], names: Sequence[str]) -> dict[str, Tally]:
    """What metrics of written answers make of them. Raises ConfigError: one of them is a function that fails."""
    found = {}
    for name in names:
        compare = metric(name).compare
        assert compare is not None
        values = [compare(answer, one.right, one.fields) for one, answer in zip(asked, answers, strict=True)]
        found[name] = Tally(sum(values), len(values))
    return found
