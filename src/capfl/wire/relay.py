"""A round's updates as one difference: the bodies that clients sent, as they came, and how much each weighs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from capfl.errors import WireError
from capfl.wire.sections import WEIGHT, Section, read, write


def pack(bodies: Iterable[tuple[int, bytes]]) -> bytes:
    """A section for each (weight, body), in the order given. A weight takes four bytes."""
    return b"".join(write(Section.RELAYED, weight.to_bytes(WEIGHT, "little") + body) for weight, body in bodies)


def unpack(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The (weight, body) that ``pack`` wrote, one by one.

    Raises:
        WireError: a section that is none of them, is cut off, or weighs nothing; or there is none.
    """
    if not len(data):
        raise WireError("a round's updates are relayed, and there are none")
    for _, section in read(data, (Section.RELAYED,)):
        weight = int.from_bytes(section[:WEIGHT], "little")
        if len(section) < WEIGHT or not weight:
            raise WireError("a relayed update has no weight")
        yield weight, section[WEIGHT:]
