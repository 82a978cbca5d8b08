"""A body is a list of sections: a tag, a length, and bytes. The ledger counts them by part."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

from capfl.errors import WireError


class Section(IntEnum):
    NAMES = 1  # which tensors are in the message, a bit each
    POSITIONS = 2  # which of their elements
    SCALES = 3
    VALUES = 4
    GROUPING = 5  # a record: what the method's grouping says
    RANKS = 6  # how important each rank is: what is drawn of it follows from that
    SCORES = 8  # a record: of models
    RELAYED = 11  # a weight, and sections again: the update of one client
    RANKING = 12  # a record: what the method says of ranks
    KEY = 13  # secure aggregation: a public key, and its signature
    COHORT = 14  # the keys of all whose updates will be summed
    GONE = 15  # clients of these that have not answered
    DIFFERENCE = 16  # sections again: the change from one version of a group's adapter to the next
    STATE = 17  # sections again: the adapter itself
    NUMBERS = 18  # secure aggregation: scales, loss and steps, masked
    MASKED = 19  # values, masked
    SECRETS = 20  # shared with clients that have not answered
    SHARES = 21  # of secrets: sealed, or opened


PARTS = {
    Section.NAMES: "header",
    Section.RANKS: "positions",  # it is in their place
    Section.POSITIONS: "positions",
    Section.SCALES: "scales",
    Section.VALUES: "values",
    Section.GROUPING: "records",
    Section.RANKING: "records",
}
PARTS_OF_SECURE = {
    Section.KEY: "keys",
    Section.COHORT: "keys",
    Section.GONE: "keys",
    Section.SECRETS: "keys",
    Section.SHARES: "keys",
    Section.NUMBERS: "scales",
    Section.MASKED: "values",
}
HEAD = 5  # bytes of tag and length
WEIGHT = 4  # bytes of a relayed update's weight


def write(tag: Section, data: bytes) -> bytes:
    """One section: tag, length as four bytes in little-endian order, data."""
    return bytes([tag]) + len(data).to_bytes(4, "little") + data


def read(body: memoryview, allowed: tuple[Section, ...]) -> Iterator[tuple[Section, memoryview]]:
    """The sections of a body, in order.

    Raises:
        WireError: a tag that is not allowed here, or a length that goes beyond the end.
    """
    while len(body):
        if body[0] not in [int(tag) for tag in allowed]:
            raise WireError(f"section {body[0]} where one of {', '.join(tag.name for tag in allowed)} was expected")
        end = HEAD + int.from_bytes(body[1:HEAD], "little")
        if len(body) < max(HEAD, end):
            raise WireError(f"section {Section(body[0]).name} is cut off")
        yield Section(body[0]), body[HEAD:end]
        body = body[end:]


def split(body: memoryview, first: tuple[Section, ...]) -> tuple[dict[Section, memoryview], memoryview]:
    """The sections that a body begins with, each of ``first`` at most once and in that order, and the rest.

    Raises:
        WireError: one of them comes twice or in another place, or is cut off.
    """
    found: dict[Section, memoryview] = {}
    while len(body) and body[0] in first:
        tag, data = next(read(body, first))
        if any(first.index(tag) <= first.index(before) for before in found):
            raise WireError(f"section {tag.name} comes twice or in the wrong place")
        found[tag] = data
        body = body[HEAD + len(data) :]
    return found, body


def parts(body: bytes | memoryview, header: int = 0) -> dict[str, int]:
    """How many bytes of a body, or of relayed ones, belong to each part of the ledger.

    Tags, lengths and weights of sections count as header, and so do ``header`` bytes outside of the body. There are
    keys only where there is secure aggregation.
    """
    counted = dict.fromkeys(PARTS.values(), 0) | {"header": header}
    for tag, data in read(memoryview(body), (*PARTS, *PARTS_OF_SECURE, Section.RELAYED)):
        counted["header"] += HEAD
        if tag in PARTS_OF_SECURE:
            part = PARTS_OF_SECURE[tag]
            counted[part] = counted.get(part, 0) + len(data)
            continue
        if tag is Section.RELAYED:
            counted["header"] += WEIGHT
            for part, n in parts(data[WEIGHT:]).items():
                counted[part] += n
        else:
            counted[PARTS[tag]] += len(data)
    return counted
