"""Sections: a tag, a length, bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfl.errors import WireError
from capfl.wire.sections import Section, parts, read, write

ALL = tuple(Section)


def listed(body: bytes, allowed: tuple[Section, ...] = ALL) -> list[tuple[Section, bytes]]:
    return [(tag, bytes(data)) for tag, data in read(memoryview(body), allowed)]


def test_by_hand():
    assert write(Section.SCALES, b"ab").hex() == "03020000006162"
    assert listed(bytes.fromhex("03" "02000000" "6162" "11" "00000000")) == [
        (Section.SCALES, b"ab"), (Section.STATE, b""),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(ALL), st.binary(max_size=9))))
def test_there_and_back(sections):
    assert listed(b"".join(write(tag, data) for tag, data in sections)) == sections


def test_nothing():
    assert listed(b"") == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("0900000000", "section 9 where one of NAMES, VALUES was expected"),
        ("0300000000", "section 3 where one of"),
        ("01", "NAMES is cut off"),
        ("01000000", "NAMES is cut off"),
        ("0101000000", "NAMES is cut off"),
        ("01ffffffff", "NAMES is cut off"),
        ("0101000000000401000000", "VALUES is cut off"),
    ],
)
def test_refusals(body, message):
    with pytest.raises(WireError, match=message):
        listed(bytes.fromhex(body), (Section.NAMES, Section.VALUES))


def test_parts():
    body = write(Section.NAMES, b"n") + write(Section.POSITIONS, b"pp") + write(Section.VALUES, b"vvvv")
    assert parts(body) == {"header": 3 * 5 + 1, "positions": 2, "scales": 0, "values": 4, "notes": 0}
    assert parts(body + write(Section.RANKS, b"rrr")) == parts(body) | {"header": 4 * 5 + 1, "positions": 2 + 3}
    both = write(Section.RANKS, b"rrr") + write(Section.ALIVE, b"a")
    assert parts(body + both) == parts(body) | {"header": 5 * 5 + 1, "positions": 2 + 3 + 1}
    assert parts(b"") == {"header": 0, "positions": 0, "scales": 0, "values": 0, "notes": 0}
