"""The one template: how an item reads, in training and in evaluation alike."""

from __future__ import annotations

from string import ascii_uppercase

from capfl.types import Item, Prompt, Scoring


def render(item: Item, scoring: Scoring) -> Prompt:
    """The text that the model reads and the answers that it may give.

    ``letter`` answers with the letter of an option, which is listed (multiple choice) or learnt (labels).
    ``text`` answers with the option itself. The text never depends on which answer is right.

    Args:
        item: with at most 26 options for ``letter``.
    """
    if not item.choices:
        return Prompt(item.question, (item.completion,), 0, item.messages, given=item.given, place=item.place)
    text = f"Question: {item.question}\n" if item.listed else f"Text: {item.question}\n"
    end = "Answer:" if item.listed else "Label:"
    if scoring == "text":
        return Prompt(text + end, tuple(f" {choice}" for choice in item.choices), item.answer, place=item.place)
    letters = ascii_uppercase[: len(item.choices)]
    if item.listed:
        text += "".join(f"{letter}. {choice}\n" for letter, choice in zip(letters, item.choices, strict=True))
    return Prompt(text + end, tuple(f" {letter}" for letter in letters), item.answer, ends=False, place=item.place)
