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
    ALIVE = 7  # which ranks the sender has, a bit each, where it lacks some
    SCORES = 8  # of models, by their place in a list
    TEST = 9  # how many test items there are, and what accuracy takes no model
    KEPT = 10  # the rank of every module that the client keeps
    RELAYED = 11  # a weight, and sections again: the update of one client
    RANKING = 12  # a record: what the method says of ranks
    DIFFERENCE = 16  # sections again: the change from one version of a group's adapter to the next
    STATE = 17  # sections again: the adapter itself


PARTS = {
    Section.NAMES: "header",
    Section.RANKS: "positions",  # it is in their place
    Section.ALIVE: "positions",
    Section.POSITIONS: "positions",
    Section.SCALES: "scales",
    Section.VALUES: "values",
    Section.GROUPING: "records",
    Section.RANKING: "records",
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
    at = 0
    while at < len(body):
        if body[at] not in [int(tag) for tag in allowed]:
            raise WireError(f"section {body[at]} where one of {', '.join(tag.name for tag in allowed)} was expected")
        end = at + HEAD + int.from_bytes(body[at + 1 : at + 5], "little")
        if at + HEAD > len(body) or end > len(body):
            raise WireError(f"section {Section(body[at]).name} is cut off")
        yield Section(body[at]), body[at + HEAD : end]
        at = end


def parts(body: bytes | memoryview) -> dict[str, int]:
    """How many bytes of a body of tensors, or of relayed ones, belong to each part.

    Tags, lengths and weights of sections count as header.
    """
    counted = dict.fromkeys(("header", *PARTS.values()), 0)
    for tag, data in read(memoryview(body), (*PARTS, Section.RELAYED)):
        counted["header"] += HEAD
        if tag is Section.RELAYED:
            counted["header"] += WEIGHT
            for part, n in parts(data[WEIGHT:]).items():
                counted[part] += n
        else:
            counted[PARTS[tag]] += len(data)
    return counted
