"""What a user should be told of how rows become tokens, before anything is trained on them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from capfl.config.data import DataConfig
from capfl.model.chat import template_of
from capfl.model.text import special_tokens
from capfl.model.tokens import Example
from capfl.types import Item

LOST = {
    "cut-prompt": "the beginning of their prompts, in chats the oldest turns",
    "cut-answer": "the end of their answers",
}


def remarks(
    items: Sequence[Item], examples: Sequence[Example], data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Rows that were cut, and chats that are written otherwise than their users may think; each with its number."""
    said = []
    cut = [(example.cut, item) for item, example in zip(items, examples, strict=True) if example.cut]
    if cut:
        worst, item = max(cut, key=lambda pair: pair[0])
        at = f" (most at {item.place}: {worst})" if item.place else ""
        said.append(
            f"WARNING: {len(cut)} of {len(items)} items are longer than data.max_length = {data.max_length} tokens "
            f"and lose {LOST[data.too_long]}: {sum(tokens for tokens, _ in cut)} tokens in all{at}; raise "
            "data.max_length to keep them, or refuse such rows: --data.too_long refuse"
        )
    joined = [item for item, example in zip(items, examples, strict=True) if example.joined and item.completion]
    if joined:
        at = f", such as {joined[0].place}" if joined[0].place else ""
        said.append(
            f"WARNING: in {len(joined)} of {len(items)} items prompt and completion meet within a token{at}: the model "
            "is trained after other tokens than those it will be given; let prompts end without a space, and begin "
            "completions with it"
        )
    chats = [item for item in items if item.messages]
    template = template_of(tokenizer, data.date)
    if chats and template.plain:
        said.append(
            f"the model has no chat template: {len(chats)} chats are written in the plain one, User: ... and "
            "Assistant: ... a line each"
        )
    folded = sum(item.messages[0][0] == "system" for item in chats)
    if folded and not template.has_system:
        said.append(
            f"the model's chat template has no system role: the system messages of {folded} chats stand at the "
            "beginning of their first user messages"
        )
    typed = special_tokens(tokenizer)
    found = [match for item in items if (match := typed.search(_text(item)))]
    if found:
        what = "items have the letters of a special token in them"
        if len(found) == 1:
            what = "item has the letters of a special token in it"
        said.append(
            f"{len(found)} {what}, such as {found[0][0]!r}: they are read as text, and the model's own special tokens "
            "are put in beside them"
        )
    return said


def _text(item: Item) -> str:
    return "\n".join([item.question, *item.choices, item.completion, *(text for _, text in item.messages)])
