"""Notes: short vectors beside an adapter, by hand, there and back, and damaged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capfl.errors import WireError
from capfl.wire import notes

KINDS = {"features": "bf16", "alpha": "positive", "beta": "positive"}
FEATURES, ALPHA = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 3.0, 2.0])

# place 0, 2 numbers, 4 bytes, bfloat16 1 and -2; place 1, 3 numbers, 5 bytes: 2 is 0x400, then 4 and -4, folded 8
# and 7: under k = 2 the quotients 2 and 1 as 001 and 01, and the remainders 00 and 11
GOLDEN = "0002000400803f00c001030005000004022830"


def test_by_hand():
    assert notes.write({"features": FEATURES, "alpha": ALPHA}, KINDS).hex() == GOLDEN
    back = notes.read(memoryview(bytes.fromhex(GOLDEN)), KINDS)
    assert list(back) == ["features", "alpha"]
    assert torch.equal(back["features"], FEATURES)
    assert torch.equal(back["alpha"], ALPHA)
    assert notes.write({}, KINDS) == b""
    assert notes.read(memoryview(b""), KINDS) == {}


finite = st.floats(-(2.0**99), 2.0**99, width=32)
positive = st.floats(2.0**-100, 2.0**100, width=32)


@given(st.lists(finite, min_size=1, max_size=9), st.lists(positive, min_size=1, max_size=9))
def test_there_and_back(features, beta):
    told = {"beta": torch.tensor(beta), "features": torch.tensor(features)}
    back = notes.read(memoryview(notes.write(told, KINDS)), KINDS)
    assert list(back) == ["features", "beta"]
    assert torch.equal(back["features"], told["features"].bfloat16().float())
    torch.testing.assert_close(back["beta"], told["beta"], rtol=1 / 16, atol=0)
    assert notes.write(back, KINDS) == notes.write(told, KINDS)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"gamma": FEATURES}, "note 'gamma' is not one of features, alpha, beta"),
        ({"alpha": FEATURES}, "note 'alpha' has numbers that are not positive"),
        ({"features": torch.tensor([float("nan")])}, "note 'features' is not a vector"),
        ({"features": torch.zeros(2, 2)}, "note 'features' is not a vector"),
        ({"features": torch.zeros(0)}, "note 'features' is not a vector"),
        ({"features": torch.zeros(2**15)}, "takes 65536 bytes, 65535 at most"),
    ],
)
def test_what_cannot_be_written(told, message):
    with pytest.raises(WireError, match=message):
        notes.write(told, KINDS)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("0002", "a note is cut off"),
        ("0002000400803f", "note 'features' is cut off"),
        ("0003000400803f00c0", "4 bytes for 3 numbers"),
        ("0000000000", "0 bytes for 0 numbers"),
        ("0301000200803f", "note 3 comes twice, in the wrong place, or is not one of 3"),
        (GOLDEN + GOLDEN, "note 0 comes twice"),
        ("0001000200c07f", "not 1 finite numbers"),  # a NaN
        ("0101000300000000", "not 1 finite numbers of kind positive"),  # zero
        ("0101000300f80700", "not a finite positive number"),  # infinity
    ],
)
def test_what_is_no_note(damaged, message):
    with pytest.raises(WireError, match=message):
        notes.read(memoryview(bytes.fromhex(damaged)), KINDS)


@given(st.binary(max_size=60))
def test_anything_else_is_refused_or_read(data):
    try:
        back = notes.read(memoryview(data), KINDS)
    except WireError:
        return
    assert set(back) <= set(KINDS)
    assert all(bool(t.isfinite().all()) for t in back.values())


# -- marks -------------------------------------------------------------------------------------------------

MARKS = {"alive": "marks"}


def test_marks_by_hand():
    alive = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    written = notes.write({"alive": alive}, MARKS)
    assert written.hex() == "0009000200b080"  # place 0, 9 marks, 2 bytes: 10110000 1
    assert torch.equal(notes.read(memoryview(written), MARKS)["alive"], alive)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_marks_there_and_back(marks):
    alive = torch.tensor(marks).float()
    back = notes.read(memoryview(notes.write({"alive": alive}, MARKS)), MARKS)["alive"]
    assert back.dtype == torch.float32
    assert torch.equal(back, alive)


def test_what_are_no_marks():
    with pytest.raises(WireError, match="marks other than 0 and 1"):
        notes.write({"alive": torch.tensor([0.5])}, MARKS)
    for damaged in ("0009000100b0", "0009000300b08000", "0009000200b0c0", "0000000000"):
        with pytest.raises(WireError, match="'alive'"):
            notes.read(memoryview(bytes.fromhex(damaged)), MARKS)
