"""The built-in data set: short requests to the helpdesks of several sites, each with its own code book.

A request mentions two topics and asks for one of them. Every site files the same twelve kinds of request
under the same twelve queues, but where code books are in conflict, not in the same way.
"""

from __future__ import annotations

import re

import numpy as np

from capfl.data.codebook import codebooks
from capfl.data.phrases import FRAMES, INTENTS, PHRASES, PLAIN, Form
from capfl.data.vocabulary import SITES, WORDS
from capfl.errors import ConfigError, DataError
from capfl.rng import stream
from capfl.types import Item

QUEUES = ("ant", "bear", "cat", "dog", "eel", "fox", "goat", "hare", "ibis", "jay", "kite", "lynx")
PLAIN_SHARE = 0.15  # requests that mention one topic only
_FORMS: tuple[Form, ...] = ("noun", "verb", "clause")
_REDRAWS = 200  # for a sentence that the site has already


def generate(sites: int, items: int, conflict: float, seed: int) -> list[Item]:
    """``items`` different requests to each of the first ``sites`` sites, kinds of request in equal numbers.

    The sentences of a site depend on the seed and the site alone, its queues on its row of the code books.

    Raises:
        ConfigError: there are fewer than ``sites`` sites, or ``items`` is not positive.
        DataError: the conflict is outside [0, 1], or ``items`` is more than the grammar can tell apart.
    """
    if not 1 <= sites <= len(SITES):
        raise ConfigError(f"data.sites is {sites}; the helpdesk has 1 to {len(SITES)}")
    if items < 1:
        raise ConfigError(f"data.items is {items}; ask for at least 1 a site")
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


def _phrase(site: str, kind: int, form: Form, generator: np.random.Generator) -> str:
    phrases = PHRASES[INTENTS[kind]][form].split(" | ")
    phrase = phrases[generator.integers(len(phrases))]
    words = {slot: ws[generator.integers(len(ws))] for slot, ws in WORDS[site].items()}
    return phrase.format(**words)


def _capitals(text: str) -> str:
    return re.sub(r"(?:^|(?<=[.?] ))[a-z]", lambda match: match[0].upper(), text)
