"""Labels as names of classes: their order, and spellings of names that are likely to mean one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_uppercase

from capfl.config.keys import as_flag
from capfl.errors import DataError
from capfl.types import Item


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Different labels, sorted: as numbers if all are whole numbers, else as texts."""
    different = sorted(set(labels))
    numbers = all(label.isdecimal() and label.isascii() for label in different)
    return tuple(sorted(different, key=int) if numbers else different)


def variants(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that look alike but for case and spacing: they are likely one, misspelt."""
    first: dict[str, str] = {}
    for name in names:
        seen = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        other = first.setdefault(" ".join(seen.casefold().split()), name)
        if other != name:
            return other, name
    return None


def refuse_variants(labels: Mapping[str, str]) -> None:
    """Labels that differ in case, spacing or Unicode form only are likely one class, misspelt.

    Args:
        labels: every label, with the place where it is.

    Raises:
        DataError: names both spellings, and says how to have them as two classes.
    """
    if found := variants(labels):
        one, other = (f"{label!r} ({labels[label]})" for label in found)
        raise DataError(
            f"labels {one} and {other} differ in case or spacing only; "
            f"write them alike, or, if they are two classes, give all: {as_flag('data.labels', in_order(labels))}"
        )


def refuse_conflicts(sets: Mapping[str, Sequence[Item]]) -> None:
    """What is learnt of a label is its letter: one that has another elsewhere would teach others the wrong one.

    Args:
        sets: items of texts and labels by the place they are from, such as a file.

    Raises:
        DataError: two places give one label different letters.
    """
    first: dict[str, tuple[int, str]] = {}
    every = in_order(label for items in sets.values() for label in items[0].choices)
    for place, items in sets.items():
        for at, label in enumerate(items[0].choices):
            before, where = first.setdefault(label, (at, place))
            if before != at:
                raise DataError(
                    f"label {label!r} is option {before + 1} in {where} and {at + 1} in {place}, because their rows do "
                    f"not have the same labels; give all, here and at every site: {as_flag('data.labels', every)}; "
                    "or train and score the labels' text: --data.scoring text"
                )


def refuse_too_many(place: str, items: Sequence[Item]) -> None:
    """Options that scoring by letter has no letters for.

    Raises:
        DataError: some items have more than 26 options.
    """
    many = [item for item in items if len(item.choices) > len(ascii_uppercase)]
    if many:
        worst = max(many, key=lambda item: len(item.choices))
        raise DataError(
            f"{place}: {len(many)} of {len(items)} items have more options than there are letters from A to Z, such as "
            f"{worst.question!r:.60} with {len(worst.choices)}; compare the options' text: --data.scoring text"
        )
