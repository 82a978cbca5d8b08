"""The built-in data set: short requests to the helpdesks of several sites, each with its own code book.

A request mentions two topics and asks for one of them. Every site files the same twelve kinds of request
under the same twelve queues, but where code books are in conflict, not in the same way.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np

from capfl.data.codebooks import codebooks
from capfl.errors import DataError
from capfl.rng import stream
from capfl.types import Item

QUEUES = ("ant", "bear", "cat", "dog", "eel", "fox", "goat", "hare", "ibis", "jay", "kite", "lynx")
PLAIN_SHARE = 0.15  # requests that mention one topic only
_REDRAWS = 200  # for a sentence that the site has already

_TEXTS = tomllib.loads((Path(__file__).parent / "helpdesk.toml").read_text(encoding="utf-8"))
PHRASES: dict[str, dict[str, list[str]]] = _TEXTS["phrases"]
"""Phrases of every kind of request, by grammatical form."""
FRAMES: dict[str, list[str]] = _TEXTS["frames"]
"""Sentences with two topics, by grammatical form."""
PLAIN: dict[str, list[str]] = _TEXTS["plain"]
"""Sentences with one topic."""
WORDS: dict[str, dict[str, list[str]]] = {site: own | _TEXTS["common"] for site, own in _TEXTS["sites"].items()}
"""Words that fill the slots of the phrases, by site and slot."""
INTENTS, SITES, _FORMS = tuple(PHRASES), tuple(WORDS), tuple(FRAMES)


def generate(sites: int, items: int, conflict: float, seed: int) -> list[Item]:
    """``items`` different requests to each of the first ``sites`` sites, kinds of request in equal numbers.

    The sentences of a site depend on the seed and the site alone, its queues on its row of the code books.

    Args:
        sites: 1 to 12.
        conflict: share of the kinds of request that no two sites file alike.

    Raises:
        DataError: ``items`` is more than the grammar can tell apart.
    """
    books = codebooks(sites, len(INTENTS), conflict, seed)
    return [item for k, site in enumerate(SITES[:sites]) for item in _requests(site, items, books[k], seed)]


def _requests(site: str, items: int, book: np.ndarray, seed: int) -> list[Item]:
    generator = stream(seed, "helpdesk", site)
    kinds = generator.permutation(np.arange(items) % len(INTENTS))
    seen: set[str] = set()
    made = []
    for kind in kinds.tolist():
        text = _new_sentence(site, kind, seen, generator)
        seen.add(text)
        code = int(book[kind])
        fields = {"task": "helpdesk", "site": site, "intent": INTENTS[kind], "label": QUEUES[code]}
        made.append(Item(text, QUEUES, code, listed=False, fields=fields))
    return made


def _new_sentence(site: str, kind: int, seen: set[str], generator: np.random.Generator) -> str:
    for _ in range(_REDRAWS):
        text = _sentence(site, kind, generator)
        if text not in seen:
            return text
    raise DataError(f"helpdesk: site {site} runs out of different sentences after {len(seen)}; lower data.items")


def _sentence(site: str, kind: int, generator: np.random.Generator) -> str:
    # A form weighs as much as it has frames, so that every frame is equally likely.
    counts = np.array([len(FRAMES[form]) for form in _FORMS])
    form = _FORMS[generator.choice(len(_FORMS), p=counts / counts.sum())]
    other = (kind + int(generator.integers(1, len(INTENTS)))) % len(INTENTS)
    frames = PLAIN[form] if generator.random() < PLAIN_SHARE else FRAMES[form]
    frame = frames[generator.integers(len(frames))]
    return _capitals(
        frame.format(ask=_phrase(site, kind, form, generator), other=_phrase(site, other, form, generator))
    )


def _phrase(site: str, kind: int, form: str, generator: np.random.Generator) -> str:
    phrases = PHRASES[INTENTS[kind]][form]
    phrase = phrases[generator.integers(len(phrases))]
    words = {slot: ws[generator.integers(len(ws))] for slot, ws in WORDS[site].items()}
    return phrase.format(**words)


def _capitals(text: str) -> str:
    return re.sub(r"(?:^|(?<=[.?] ))[a-z]", lambda match: match[0].upper(), text)
