"""Selected elements of an adapter as sections, and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import positions
from capfl.wire.layout import Floats, Ints, Layout
from capfl.wire.sections import Section, read, write
from capfl.wire.values import Values

SECTIONS = (Section.NAMES, Section.RANKS, Section.ALIVE, Section.POSITIONS, Section.SCALES, Section.VALUES)


def pack(
    flat: Floats,
    kept: Ints,
    with_positions: bool,
    values: Values,
    layout: Layout,
    template: Adapter,
    unbiased: bool = False,
    ranks: bytes = b"",
    alive: bytes = b"",
) -> bytes:
    """Sections for the elements ``kept`` (n,) of ``flat`` (size,).

    Args:
        with_positions: write them; otherwise the receiver knows them.
        unbiased: scale the values so that they are right on average, rather than closest.
        ranks, alive: what the positions follow from, where the receiver needs it: the importance of ranks, and which
            of them the sender has. Empty: no section.
    """
    names = {name for name, _ in layout.shapes}
    body = write(Section.NAMES, np.packbits(np.array([name in names for name in template], np.bool_)).tobytes())
    if not len(kept):
        return body
    scales, coded = values.encode(flat[kept], kept, layout, unbiased)
    if ranks:
        body += write(Section.RANKS, ranks)
    if alive:
        body += write(Section.ALIVE, alive)
    if with_positions:
        body += write(Section.POSITIONS, positions.encode(kept, layout))
    if scales:
        body += write(Section.SCALES, scales)
    return body + write(Section.VALUES, coded)


def unpack(
    body: memoryview,
    values: Values,
    template: Adapter,
    implied: Callable[[Layout, memoryview | None, memoryview | None], Ints],
) -> tuple[Layout, Ints, Floats]:
    """The layout, the positions (n,) and the values (n,) of what ``pack`` wrote.

    Args:
        implied: gives the positions of a message without the section POSITIONS, from its layout and its sections RANKS
            and ALIVE.

    Raises:
        WireError: the sections are not a body for this template.
    """
    largest = 64 + 5 * algebra.size(template) + 8 * sum(sum(t.shape) for t in template.values())
    if len(body) > largest:  # before anything is allocated
        raise WireError(f"body of {len(body)} bytes, an adapter of this shape takes {largest} at most")
    found: dict[Section, memoryview] = {}
    for tag, data in read(body, SECTIONS):
        if any(SECTIONS.index(tag) <= SECTIONS.index(before) for before in found):
            raise WireError(f"section {tag.name} comes twice or in the wrong place")
        found[tag] = data
    layout = _layout(found.get(Section.NAMES), template)
    if Section.VALUES not in found:
        if len(found) > 1:
            raise WireError("body has ranks, positions or scales without values")
        return layout, np.zeros(0, np.int64), np.zeros(0, np.float32)
    listed, ranks, alive = (found.get(tag) for tag in (Section.POSITIONS, Section.RANKS, Section.ALIVE))
    if listed is not None and ranks is not None:
        raise WireError("body has positions and the ranks that they would follow from")
    if alive is not None and ranks is None:
        raise WireError("body says which ranks there are, but not how important they are")
    kept = implied(layout, ranks, alive) if listed is None else positions.decode(listed, layout)
    decoded = values.decode(found.get(Section.SCALES, memoryview(b"")), found[Section.VALUES], kept, layout)
    if not np.isfinite(decoded).all():
        bad = int(kept[~np.isfinite(decoded)][0])
        name = layout.shapes[int(np.searchsorted(layout.starts, bad, side="right")) - 1][0]
        raise WireError(f"{name!r} has values that are not finite")
    return layout, kept, decoded


def _layout(data: memoryview | None, template: Adapter) -> Layout:
    if data is None or len(data) != (len(template) + 7) // 8:
        raise WireError(f"the list of tensors does not fit an adapter of {len(template)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[len(template) :].any():
        raise WireError("the list of tensors names more than the adapter has")
    return Layout.of({name: t for (name, t), bit in zip(template.items(), bits, strict=False) if bit}, template)
