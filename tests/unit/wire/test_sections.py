"""Sections: a tag, a length, bytes."""

from __future__ import annotations

import pytest

from capfl.errors import WireError
from capfl.wire.sections import Section, parts, read, split, write


def listed(body: str, *allowed: Section) -> list[tuple[Section, bytes]]:
    return [(tag, bytes(data)) for tag, data in read(memoryview(bytes.fromhex(body)), allowed)]


def test_by_hand():
    assert write(Section.SCALES, b"ab").hex() == "03020000006162"
    assert listed("030200000061621100000000", *Section) == [(Section.SCALES, b"ab"), (Section.STATE, b"")]
    assert listed("") == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("0900000000", "section 9 where one of NAMES, VALUES was expected"),
        ("0300000000", "section 3 where one of"),
        ("01", "NAMES is cut off"),
        ("0101000000", "NAMES is cut off"),
        ("01ffffffff", "NAMES is cut off"),
        ("0101000000000401000000", "VALUES is cut off"),
    ],
)
def test_what_are_no_sections(body, message):
    with pytest.raises(WireError, match=message):
        listed(body, Section.NAMES, Section.VALUES)


def test_what_a_body_begins_with():
    first = (Section.NAMES, Section.SCALES)
    body = write(Section.NAMES, b"n") + write(Section.SCALES, b"s")
    found, rest = split(memoryview(body + write(Section.STATE, b"")), first)
    assert {tag: bytes(data) for tag, data in found.items()} == {Section.NAMES: b"n", Section.SCALES: b"s"}
    assert bytes(rest) == write(Section.STATE, b"")
    assert split(memoryview(b""), first) == ({}, b"")
    for wrong in (body + body, write(Section.SCALES, b"s") + write(Section.NAMES, b"n")):
        with pytest.raises(WireError, match="NAMES comes twice or in the wrong place"):
            split(memoryview(wrong), first)


def test_the_parts_of_the_ledger():
    body = write(Section.NAMES, b"n") + write(Section.POSITIONS, b"pp") + write(Section.VALUES, b"vvvv")
    assert parts(body) == {"header": 3 * 5 + 1, "positions": 2, "scales": 0, "values": 4, "records": 0}
    body += write(Section.RANKS, b"rrr") + write(Section.SCALES, b"sssss")
    assert parts(body) == {"header": 5 * 5 + 1, "positions": 2 + 3, "scales": 5, "values": 4, "records": 0}
    relayed = write(Section.RELAYED, bytes(4) + body)
    assert parts(relayed) == parts(body) | {"header": 5 + 4 + 5 * 5 + 1}
