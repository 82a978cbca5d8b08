"""Short vectors that travel beside an adapter: a client's features, the parameters of a posterior or a prior.

Each is one byte for its place in the method's list of notes, two for its length n, two for its length in bytes, and
data: bfloat16, positive numbers with three bits of mantissa, or marks of 0 or 1, a bit each. Both sides know from the
list which.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from capfl.errors import WireError
from capfl.types import NoteKind, Notes
from capfl.wire.scales import Scales

_POSITIVE = Scales(mantissa=3)
_HEAD = 5
LONGEST = 2**16 - 1  # numbers, and bytes


def write(notes: Notes, kinds: Mapping[str, NoteKind]) -> bytes:
    """Notes as bytes, in the order of ``kinds``. No notes are no bytes.

    Raises:
        WireError: a note has no kind, or is no vector of finite numbers, positive ones where the kind says so.
    """
    if unknown := sorted(notes.keys() - kinds.keys()):
        raise WireError(f"note {unknown[0]!r} is not one of {', '.join(kinds) or 'none'}")
    body = b""
    for place, (name, kind) in enumerate(kinds.items()):
        if name in notes:
            data = _write(name, notes[name], kind)
            body += bytes([place]) + len(notes[name]).to_bytes(2, "little") + len(data).to_bytes(2, "little") + data
    return body


def read(body: memoryview, kinds: Mapping[str, NoteKind]) -> Notes:
    """What ``write`` wrote, as float32.

    Raises:
        WireError: the bytes are not notes of these kinds.
    """
    names, found, at = list(kinds), dict[str, torch.Tensor](), 0
    last = -1
    while at < len(body):
        if at + _HEAD > len(body):
            raise WireError("a note is cut off")
        place, size = body[at], int.from_bytes(body[at + 1 : at + 3], "little")
        end = at + _HEAD + int.from_bytes(body[at + 3 : at + 5], "little")
        if not last < place < len(names):
            raise WireError(f"note {place} comes twice, in the wrong place, or is not one of {len(names)}")
        if end > len(body):
            raise WireError(f"note {names[place]!r} is cut off")
        found[names[place]] = _read(names[place], body[at + _HEAD : end], size, kinds[names[place]])
        at, last = end, place
    return found


def rounded(notes: Notes, kinds: Mapping[str, NoteKind]) -> Notes:
    """Notes as they will arrive, for a sender that has to reckon with the same numbers. Raises as ``write``."""
    return read(memoryview(write(notes, kinds)), kinds)


def _write(name: str, note: torch.Tensor, kind: NoteKind) -> bytes:
    if note.ndim != 1 or not 1 <= len(note) <= LONGEST or not bool(note.isfinite().all()):
        raise WireError(f"note {name!r} is not a vector of 1 to {LONGEST} finite numbers")
    if kind == "bf16":
        data = note.detach().cpu().to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    elif kind == "marks":
        if not bool(((note == 0) | (note == 1)).all()):
            raise WireError(f"note {name!r} has marks other than 0 and 1")
        data = np.packbits(note.detach().cpu().numpy().astype(np.bool_)).tobytes()
    elif not bool((note > 0).all()):
        raise WireError(f"note {name!r} has numbers that are not positive")
    else:
        data = _POSITIVE.write(_POSITIVE.code(note.detach().cpu().numpy()))
    if len(data) > LONGEST:
        raise WireError(f"note {name!r} takes {len(data)} bytes, {LONGEST} at most")
    return data


def _read(name: str, data: memoryview, size: int, kind: NoteKind) -> torch.Tensor:
    if kind == "bf16":
        if len(data) != 2 * size or not size:
            raise WireError(f"note {name!r} has {len(data)} bytes for {size} numbers")
        note = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).float()
    elif kind == "marks":
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        if len(data) != (size + 7) // 8 or bits[size:].any():
            raise WireError(f"note {name!r} has {len(data)} bytes for {size} marks, or marks beyond them")
        note = torch.from_numpy(bits[:size].astype(np.float32))
    else:
        note = torch.from_numpy(_POSITIVE.read(data, size).astype(np.float32))
    if not size or not bool(note.isfinite().all()) or (kind == "positive" and not bool((note > 0).all())):
        raise WireError(f"note {name!r} is not {size} finite numbers of kind {kind}")
    return note
