"""The built-in data set of texts: the requests of ``helpdesk``, and a reply to each in the house style of its site.

A reply says what the request asks for, the words that it names, and who takes care of it. So it follows from the
request and the style alone, and whether a reply is right can be told exactly. Sites of one style have the same task.
Sites of two styles answer like requests differently: a conflict that no label shows, because most replies are unique.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from capfl.data.helpdesk import INTENTS, SITES, Request, requests
from capfl.types import Item

_TEXTS = tomllib.loads((Path(__file__).parent / "replies.toml").read_text(encoding="utf-8"))
TOPICS: dict[str, list[str]] = _TEXTS["topics"]
"""What a request is about, and the team for it, by its kind."""
STYLES: dict[str, dict[str, str]] = _TEXTS["styles"]
"""Frames of replies with and without details, by style."""


def generate(sites: int, items: int, conflict: float, seed: int) -> list[Item]:
    """``items`` different requests to each of the first ``sites`` sites, with replies.

    Args:
        sites: 1 to 12.
        conflict: 0: all sites write in the first style; above 0: every second one in the other.

    Raises:
        DataError: ``items`` is more than the grammar can tell apart.
    """
    styles = list(STYLES)
    made = []
    for k, site in enumerate(SITES[:sites]):
        style = styles[k % len(styles) if conflict else 0]
        for request in requests(site, items, seed):
            fields = {"task": "replies", "site": site, "intent": INTENTS[request.kind], "style": style}
            made.append(Item(request.text, completion=reply(request, style), fields=fields, source="replies"))
    return made


def reply(request: Request, style: str) -> str:
    """What a site of that style answers."""
    topic, team = TOPICS[INTENTS[request.kind]]
    frame = STYLES[style]["details" if request.details else "plain"]
    return frame.format(topic=topic, team=team, details=", ".join(request.details))
