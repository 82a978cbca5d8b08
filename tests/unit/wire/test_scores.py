"""Validations and evaluations: pinned bytes, every field, and WireError for whatever is not one."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import resealed
from capfl.errors import WireError
from capfl.types import Evaluation, HeldOut, Score, Validation
from capfl.wire import (
    MODELS,
    Codec,
    decode_evaluation,
    decode_update,
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
    told = "4350464c0203010004000000" + SCHEMA.hex() + "00" * 16 + "0400" + b"site".hex()
    body = "0811000000010300000007000000000000000000f83f"
    assert blob[:-4].hex() == told + body
    assert decode_validation(blob, FP32, SCHEMA) == (VALID, {"header": len(blob) - 17, "scores": 17})


def test_golden_evaluation():
    blob = evaluation()
    told = "4350464c020401000b000000" + SCHEMA.hex() + "0c000000" + "00" * 12 + "0400" + b"site".hex()
    scores = (
        "08" "33000000"
        "00" "01000000" "08000000" "0000000000000440"
        "01" "05000000" "08000000" "000000000000f03f"
        "02" "08000000" "08000000" "0000000000000000"
    )  # fmt: skip
    rest = "091400000008000000000000000000d03f000000000000d83f0a0400000003000100"
    assert blob[:-4].hex() == told + scores + rest
    assert decode_evaluation(blob, FP32, SCHEMA, TEMPLATE) == (SAID, {"header": len(blob) - 75, "scores": 75})


# -- what comes back --------------------------------------------------------------------------------------

counted = st.tuples(st.integers(1, 2**32 - 1), st.floats(0, 1), st.floats(0, 1e4)).map(
    lambda t: Score(int(t[1] * t[0]), t[0], t[2])
)
shares = st.floats(0, 1)


@settings(max_examples=40)
@given(
    st.integers(1, 2**32 - 1),
    st.text(max_size=9),
    st.builds(HeldOut, st.integers(1, 2**32 - 1), shares, shares) | st.builds(HeldOut, st.integers(1, 9)),
    st.dictionaries(st.sampled_from(MODELS), counted),
    st.fixed_dictionaries({"q": st.integers(1, 3), "v": st.integers(1, 2)}),
    counted,
)
def test_any_scores_come_back(round, client, test, scores, ranks, score):
    said = Evaluation(round, client, test.number, test, scores, ranks)
    got, parts = decode_evaluation(blob := evaluation(said), FP32, SCHEMA, TEMPLATE)
    assert got == said
    assert list(got.scores) == [model for model in MODELS if model in scores]
    assert sum(parts.values()) == len(blob)
    valid = Validation(round, client, score)
    got, parts = decode_validation(blob := encode_validation(valid, FP32, SCHEMA), FP32, SCHEMA)
    assert got == valid
    assert sum(parts.values()) == len(blob)


# -- what is refused --------------------------------------------------------------------------------------

BODY = 38 + len("site")  # where the sections begin
TEST, KEPT = BODY + 5 + 51, BODY + 5 + 51 + 5 + 20


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (8, struct.pack("<I", 0), "round 0"),
        (20, struct.pack("<I", 0), "0 training items"),
        (24, struct.pack("<I", 7), "7 steps"),
        (28, struct.pack("<d", 1.5), "loss 1.5"),
        (BODY, b"\x09", "sent TEST, TEST, KEPT, expected SCORES, TEST, KEPT"),
        (BODY + 5, b"\x03", "scored model 3"),
        (BODY + 5 + 17, b"\x00", "scored model 0 twice"),
        (BODY + 6, struct.pack("<I", 9), "scored base with 9 of 8"),
        (BODY + 10, struct.pack("<I", 0), "scored base with 1 of 0"),
        (BODY + 14, struct.pack("<d", float("nan")), "nll nan"),
        (TEST + 5, struct.pack("<I", 0), "no test items"),
        (TEST + 9, struct.pack("<d", float("nan")), "chance is nan"),
        (TEST + 17, struct.pack("<d", -0.1), "most frequent answer right -0.1"),
        (KEPT + 5, struct.pack("<H", 4), "rank 4 in 'q', of 1 to 3"),
        (KEPT + 7, struct.pack("<H", 0), "rank 0 in 'v', of 1 to 2"),
    ],
)
def test_a_field_that_is_wrong_although_the_checksum_is_right(at: int, new: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        read(resealed(evaluation(), at, new))


@pytest.mark.parametrize("part", ["scores", "test", "ranks"])
def test_sections_of_another_length(part: str) -> None:
    at, size = {"scores": (BODY, 51), "test": (TEST, 20), "ranks": (KEPT, 4)}[part]
    blob = evaluation()
    shorter = blob[: at + 1] + struct.pack("<I", size - 1) + blob[at + 5 : at + 4 + size] + blob[at + 5 + size :]
    with pytest.raises(WireError, match=r"cut off|test items in 19 bytes|ranks in 3 bytes"):
        read(resealed(shorter))


def test_a_validation_is_of_the_global_adapter_alone():
    blob = encode_validation(VALID, FP32, SCHEMA)
    with pytest.raises(WireError, match="has scores of base"):
        decode_validation(resealed(blob, BODY + 5, b"\x00"), FP32, SCHEMA)
    with pytest.raises(WireError, match="12 training items"):
        decode_validation(resealed(blob, 20, struct.pack("<I", 12)), FP32, SCHEMA)


@pytest.mark.parametrize("score", [Score(0, 0, 0.0), Score(2, 1, 0.0), Score(1, 1, float("nan")), Score(0, 3, 4e6),
                                   Score(1, 1, -0.1)])  # fmt: skip
def test_a_client_does_not_send_what_would_be_refused(score: Score) -> None:
    with pytest.raises(WireError, match="scored global with"):
        encode_validation(replace(VALID, score=score), FP32, SCHEMA)
    with pytest.raises(WireError, match="scored global with"):
        evaluation(replace(SAID, scores={"global": score}))


def test_another_kind_schema_or_codec():
    blob = evaluation()
    for decode in (
        lambda: decode_validation(blob, FP32, SCHEMA),
        lambda: decode_update(blob, FP32, SCHEMA, TEMPLATE),
        lambda: decode_evaluation(blob, FP32, schema_hash(TEMPLATE, "other"), TEMPLATE),
        lambda: decode_evaluation(blob, Codec(VALUES["bf16"]), SCHEMA, TEMPLATE),
    ):
        with pytest.raises(WireError):
            decode()


@pytest.mark.parametrize("blob", [evaluation(), encode_validation(VALID, FP32, SCHEMA)])
def test_cut_off_extended_or_with_one_bit_flipped(blob: bytes) -> None:
    for at in range(len(blob)):
        flipped = blob[:at] + bytes([blob[at] ^ 1 << at % 8]) + blob[at + 1 :]
        for wrong in (blob[:at], blob + b"\0", flipped):
            with pytest.raises(WireError):
                decode_validation(wrong, FP32, SCHEMA)
            with pytest.raises(WireError):
                read(wrong)
