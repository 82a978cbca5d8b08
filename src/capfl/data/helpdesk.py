"""The built-in data set: short requests to the helpdesks of several sites, each with its own code book.

A request mentions two topics and asks for one of them. Every site files the same twelve kinds of request
under the same twelve queues, but where code books are in conflict, not in the same way.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

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
    made = []
    for request in requests(site, items, seed):
        code = int(book[request.kind])
        fields = {"task": "helpdesk", "site": site, "intent": INTENTS[request.kind], "label": QUEUES[code]}
        made.append(Item(request.text, QUEUES, code, listed=False, fields=fields, source="helpdesk"))
    return made


@dataclass(frozen=True)
class Request:
    """One sentence. ``kind`` indexes ``INTENTS``, ``details`` are the words of the site in what it asks for."""

    text: str
    kind: int
    details: tuple[str, ...]


def requests(site: str, items: int, seed: int) -> list[Request]:
    """Different requests to one of ``SITES``, kinds in equal numbers.

    Raises:
        DataError: ``items`` is more than the grammar can tell apart.
    """
    generator = stream(seed, "helpdesk", site)
    kinds = generator.permutation(np.arange(items) % len(INTENTS))
    made: dict[str, Request] = {}
    for kind in kinds.tolist():
        request = next(
            (new for _ in range(_REDRAWS) if (new := _request(site, kind, generator)).text not in made), None
        )
        if request is None:
            raise DataError(
                f"helpdesk: site {site} runs out of different sentences after {len(made)}; lower data.items"
            )
        made[request.text] = request
    return list(made.values())


def _request(site: str, kind: int, generator: np.random.Generator) -> Request:
    # A form weighs as much as it has frames, so that every frame is equally likely.
    counts = np.array([len(FRAMES[form]) for form in _FORMS])
    form = _FORMS[generator.choice(len(_FORMS), p=counts / counts.sum())]
    other = (kind + int(generator.integers(1, len(INTENTS)))) % len(INTENTS)
    frames = PLAIN[form] if generator.random() < PLAIN_SHARE else FRAMES[form]
    frame = frames[generator.integers(len(frames))]
    ask, details = _phrase(site, kind, form, generator)
    text = frame.format(ask=ask, other=_phrase(site, other, form, generator)[0])
    return Request(_capitals(text), kind, details)


def _phrase(site: str, kind: int, form: str, generator: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """A phrase, and the words that fill its slots, in their order."""
    phrases = PHRASES[INTENTS[kind]][form]
    phrase = phrases[generator.integers(len(phrases))]
    words = {slot: ws[generator.integers(len(ws))] for slot, ws in WORDS[site].items()}
    slots = [slot for _, slot, _, _ in Formatter().parse(phrase) if slot]
    return phrase.format(**words), tuple(words[slot] for slot in slots)


def _capitals(text: str) -> str:
    return re.sub(r"(?:^|(?<=[.?] ))[a-z]", lambda match: match[0].upper(), text)
