"""Records: typed vectors beside an adapter, by hand, there and back, and damaged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capfl.errors import WireError
from capfl.wire.records import read, rounded, vector, write


@dataclass(frozen=True)
class Said:
    features: torch.Tensor = vector("bf16")
    alpha: torch.Tensor = vector("positive")
    marks: torch.Tensor | None = vector("marks", optional=True)


DOCUMENT = Path(__file__).parents[3] / "docs" / "wire.md"
SAID = Said(
    torch.tensor([1.0, -2.0]),
    torch.tensor([2.0, 3.0, 2.0]),
    marks=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
)
# place 0, 2 numbers, 4 bytes, bfloat16 1 and -2; place 1, 3 numbers, 5 bytes: 2 is 0x400, then 4 and -4, folded 8
# and 7: under k = 2 the quotients 2 and 1 as 001 and 01, and the remainders 00 and 11; place 2, 9 marks, 2 bytes
FEATURES, ALPHA, MARKS = "0002000400803f00c0", "01030005000004022830", "0209000200b080"


def test_by_hand():
    assert write(SAID).hex() == FEATURES + ALPHA + MARKS
    back = rounded(SAID)
    assert all(torch.equal(getattr(back, name), getattr(SAID, name)) for name in ("features", "alpha", "marks"))
    assert {back.features.dtype, back.alpha.dtype, back.marks.dtype} == {torch.float32}
    assert write(replace(SAID, marks=None)).hex() == FEATURES + ALPHA
    assert rounded(replace(SAID, marks=None)).marks is None
    example = DOCUMENT.read_text().split("## Records")[1].split("## Scores")[0]
    lines = [line[4:28] for line in example.splitlines() if line.startswith("    ")]
    assert "".join(lines).replace(" ", "") == FEATURES + ALPHA + MARKS


finite = st.floats(-(2.0**99), 2.0**99, width=32)
positive = st.floats(2.0**-100, 2.0**100, width=32)
one_to_nine = {"min_size": 1, "max_size": 9}


@settings(max_examples=50)
@given(st.lists(finite, **one_to_nine), st.lists(positive, **one_to_nine), st.lists(st.booleans(), **one_to_nine))
def test_there_and_back(features, alpha, marks):
    said = Said(torch.tensor(features), torch.tensor(alpha), marks=torch.tensor(marks))
    back = rounded(said)
    assert torch.equal(back.features, said.features.bfloat16().float())
    torch.testing.assert_close(back.alpha, said.alpha, rtol=1 / 16, atol=0)
    assert torch.equal(back.marks, said.marks.float())
    assert write(back) == write(said)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": None}, "Said.features is missing"),
        ({"features": torch.tensor([float("nan")])}, "Said.features is not a vector of 1 to 65535 finite numbers"),
        ({"features": torch.zeros(2, 2)}, "Said.features is not a vector"),
        ({"features": torch.zeros(0)}, "Said.features is not a vector"),
        ({"features": torch.zeros(2**15)}, "Said.features takes 65536 bytes, 65535 at most"),
        ({"features": torch.tensor([3.4e38])}, "Said.features has numbers too large for bf16"),
        ({"alpha": torch.tensor([1.0, 0.0])}, "Said.alpha has numbers that are not positive"),
        ({"alpha": torch.tensor([1e-45])}, "Said.alpha has numbers that are not positive, or too small"),
        ({"marks": torch.tensor([0.5])}, "Said.marks has marks other than 0 and 1"),
    ],
)
def test_what_cannot_be_written(wrong, message):
    with pytest.raises(WireError, match=message):
        write(replace(SAID, **wrong))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("", "Said.features is missing"),
        (FEATURES, "Said.alpha is missing"),
        ("0002", "Said.features is cut off"),
        ("0002000400803f", "Said.features is cut off"),
        ("0003000400803f00c0", "Said.features cannot be read: 4 bytes for 3 numbers"),
        ("0000000000", "Said.features cannot be read: there are no elements"),
        ("0301000200803f", "Said has 3 fields, the message has one with number 3"),
        (FEATURES + FEATURES, "Said.features comes twice"),
        (ALPHA + FEATURES, "Said.features comes twice or in the wrong place"),
        ("0001000200c07f", "Said.features cannot be read: there are numbers that are not finite"),  # a NaN
        ("0101000300000000", "Said.alpha cannot be read: there are numbers that are not positive"),  # zero
        ("0101000300f80700", "Said.alpha cannot be read: a scale is not a finite positive number"),  # infinity
        ("01010002000004", "Said.alpha cannot be read: 0 bytes do not begin with a Rice parameter"),
        ("0209000100b0", "Said.marks cannot be read: 1 bytes, 9 numbers of 1 bits take 2"),
        ("0209000200b0c0", "Said.marks cannot be read: spare bits are not zero"),
    ],
)
def test_what_is_no_record(damaged, message):
    with pytest.raises(WireError, match=message):
        read(memoryview(bytes.fromhex(damaged)), Said)


def test_a_class_with_another_field_is_no_record():
    @dataclass(frozen=True)
    class Wrong:
        alpha: torch.Tensor = vector("positive")
        count: int = 0

    with pytest.raises(TypeError, match=r"Wrong.count cannot be sent: declare it with vector"):
        write(Wrong(SAID.alpha))
