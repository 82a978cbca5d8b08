"""Selected elements of an adapter as sections, and the sections back."""

from __future__ import annotations

import numpy as np

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.types import Adapter
from capfl.wire import positions, rice
from capfl.wire.layout import Floats, Layout, Places
from capfl.wire.sections import Section, read, split, write
from capfl.wire.values import Values

SECTIONS = (Section.NAMES, Section.RANKS, Section.POSITIONS, Section.SCALES, Section.VALUES)


def pack(
    flat: Floats,
    kept: Places,
    values: Values,
    layout: Layout,
    template: Adapter,
    listed: bool = True,
    unbiased: bool = False,
    importance: bytes | None = None,
) -> bytes:
    """Sections for the elements ``kept`` (n,) of ``flat`` (size,).

    Args:
        listed: write the positions; otherwise the receiver knows them.
        unbiased: scale the values so that they are right on average, rather than closest.
        importance: of ranks, where the positions follow from it.
    """
    names = {name for name, _ in layout.shapes}
    body = write(Section.NAMES, np.packbits(np.array([name in names for name in template], np.bool_)).tobytes())
    if not len(kept):
        return body
    sent = flat if len(kept) == len(flat) else flat[kept]
    scales, coded = values.encode(sent, kept, layout, unbiased)
    if importance is not None:
        body += write(Section.RANKS, importance)
    if listed:
        body += write(Section.POSITIONS, positions.encode(kept, layout.size))
    if scales:
        body += write(Section.SCALES, scales)
    return body + write(Section.VALUES, coded)


def unpack(body: memoryview, template: Adapter) -> tuple[Layout, dict[Section, memoryview]]:
    """The layout of what ``pack`` wrote, and its sections.

    Raises:
        WireError: they are not those of a body for this template.
    """
    most = 64 + 5 * algebra.size(template) + 8 * sum(sum(t.shape) for t in template.values())
    if len(body) > most:  # before anything is allocated
        raise WireError(f"body of {len(body)} bytes, an adapter of this shape takes {most} at most")
    found, rest = split(body, SECTIONS)
    next(read(rest, SECTIONS), None)  # refuses whatever else there is
    layout = _layout(found.get(Section.NAMES), template)
    if Section.VALUES not in found and len(found) > 1:
        raise WireError("body has ranks, positions or scales without values")
    if Section.POSITIONS in found and Section.RANKS in found:
        raise WireError("body has positions and the ranks that they would follow from")
    return layout, found


def _layout(data: memoryview | None, template: Adapter) -> Layout:
    if data is None:
        raise WireError("body does not say which tensors it has")
    named = rice.unpack(data, len(template), 1)
    return Layout.of({name: t for (name, t), bit in zip(template.items(), named, strict=True) if bit}, template)
