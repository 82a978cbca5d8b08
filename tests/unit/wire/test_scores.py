"""Validations and evaluations: pinned bytes, every field, and WireError for whatever is not one."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import torch

from adapters import resealed
from capfl.errors import WireError
from capfl.types import Evaluation, HeldOut, Score, Validation
from capfl.wire import (
    Codec,
    decode_evaluation,
    decode_validation,
    encode_evaluation,
    encode_validation,
    schema_hash,
)
from capfl.wire.values import VALUES

TEMPLATE = {"q.A": torch.zeros(3, 4), "q.B": torch.zeros(2, 3), "v.A": torch.zeros(2, 4), "v.B": torch.zeros(2, 2)}
SCHEMA = schema_hash(TEMPLATE, "base")
FP32 = Codec(VALUES["fp32"])
SCORES = {"base": Score(1, 8, 2.5), "global": Score(5, 8, 1.0), "personal": Score(8, 8, 0.0)}
SAID = Evaluation(11, "site", 12, HeldOut(8, 0.25, 0.375), SCORES, {"q": 3, "v": 1})
VALID = Validation(4, "site", Score(3, 7, 1.5))


def evaluation(said: Evaluation = SAID) -> bytes:
    return encode_evaluation(said, FP32, SCHEMA, TEMPLATE)


def read(blob: bytes) -> Evaluation:
    return decode_evaluation(blob, FP32, SCHEMA, TEMPLATE)[0]


# -- the bytes themselves: a change of these is a change of the format: raise VERSION with it ------------------


def test_golden_validation():
    blob = encode_validation(VALID, FP32, SCHEMA)
    told = "4350464c0303010004000000" + SCHEMA.hex() + "00" * 16 + "0400" + b"site".hex()
    body = (
        "0823000000" "0003000100" "40" "0103001800" "0000000000000840" "0000000000001c40" "000000000000f83f"
    )  # fmt: skip
    assert blob[:-4].hex() == told + body
    assert decode_validation(blob, FP32, SCHEMA) == (VALID, {"header": len(blob) - 35, "scores": 35})


def test_golden_evaluation():
    blob = evaluation()
    told = "4350464c030401000b000000" + SCHEMA.hex() + "0c000000" + "00" * 12 + "0400" + b"site".hex()
    body = (
        "0885000000" "0003000100" "e0" "0109004800"
        "000000000000f03f" "0000000000002040" "0000000000000440"  # 1 of 8, 2.5
        "0000000000001440" "0000000000002040" "000000000000f03f"  # 5 of 8, 1
        "0000000000002040" "0000000000002040" "0000000000000000"  # 8 of 8, 0
        "0203001800" "0000000000002040" "000000000000d03f" "000000000000d83f"  # 8 items, 0.25 and 0.375
        "0302001000" "0000000000000840" "000000000000f03f"  # ranks 3 and 1
    )  # fmt: skip
    assert blob[:-4].hex() == told + body
    assert decode_evaluation(blob, FP32, SCHEMA, TEMPLATE) == (SAID, {"header": len(blob) - 133, "scores": 133})


def test_fewer_models_and_no_chance():
    said = replace(SAID, test=HeldOut(2**32 - 1), scores={"personal": Score(0, 2**32 - 1, 2.5e15)})
    assert read(evaluation(said)) == said


# -- what is refused --------------------------------------------------------------------------------------

SCORE = 42 + 5 + 6 + 5  # where numbers begin, behind header, section, marks and the head of their vector
TEST, RANK = SCORE + 72 + 5, SCORE + 72 + 29 + 5


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (8, struct.pack("<I", 0), "round 0"),
        (20, struct.pack("<I", 0), "0 training items"),
        (24, struct.pack("<I", 7), "7 steps"),
        (28, struct.pack("<d", 1.5), "loss 1.5"),
        (42, b"\x09", "something else than one section SCORES"),
        (52, b"\xc0", "9 numbers for the scores of 2 models"),
        (SCORE, struct.pack("<d", 9), "scored base with 9 of 8"),
        (SCORE, struct.pack("<d", 0.5), "scored base with 0.5 of 8"),
        (SCORE, struct.pack("<d", -1), "scored base with -1 of 8"),
        (SCORE + 8, struct.pack("<d", 2.0**32), "of 4.29497e"),
        (SCORE, struct.pack("<dd", 0, 0), "scored base with 0 of 0"),
        (SCORE + 16, struct.pack("<d", float("nan")), "Scores.scores cannot be read: there are numbers that are not"),
        (SCORE + 16, struct.pack("<d", 8_000_001), "nll 8000001.0"),
        (SCORE + 16, struct.pack("<d", -0.1), "nll -0.1"),
        (TEST, struct.pack("<d", 0), r"test items, .*\[0.0, 0.25, 0.375\]"),
        (TEST + 8, struct.pack("<d", -0.1), r"\[8.0, -0.1, 0.375\]"),
        (RANK, struct.pack("<d", 4), "rank 4 in 'q', of 1 to 3"),
        (RANK + 8, struct.pack("<d", 0), "rank 0 in 'v', of 1 to 2"),
    ],
)
def test_a_field_that_is_wrong_although_the_checksum_is_right(at: int, new: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        read(resealed(evaluation(), at, new))


def test_an_evaluation_without_its_ranks_or_its_items():
    with pytest.raises(WireError, match="ranks of 0 modules, the adapter has 2"):
        read(without(evaluation(), 21))
    with pytest.raises(WireError, match=r"test items, .*\[\]"):
        read(without(evaluation(), 21 + 29))


def without(blob: bytes, n: int) -> bytes:
    """The message without the last bytes of its record."""
    length = len(blob) - 4 - 47 - n
    return resealed(blob[:43] + length.to_bytes(4, "little") + blob[47 : 47 + length] + bytes(4))


def test_a_validation_is_of_the_global_adapter_alone():
    blob = encode_validation(VALID, FP32, SCHEMA)
    with pytest.raises(WireError, match="has scores of base"):
        decode_validation(resealed(blob, 52, b"\x80"), FP32, SCHEMA)
    with pytest.raises(WireError, match="12 training items"):
        decode_validation(resealed(blob, 20, struct.pack("<I", 12)), FP32, SCHEMA)


@pytest.mark.parametrize("score", [Score(0, 0, 0.0), Score(2, 1, 0.0), Score(1, 1, float("nan")), Score(0, 3, 4e6),
                                   Score(1, 1, -0.1)])  # fmt: skip
def test_a_client_does_not_send_what_would_be_refused(score: Score) -> None:
    with pytest.raises(WireError, match="scored global with"):
        encode_validation(replace(VALID, score=score), FP32, SCHEMA)
    with pytest.raises(WireError, match="scored global with"):
        evaluation(replace(SAID, scores={"global": score}))
