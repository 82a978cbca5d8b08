"""Validations and evaluations: pinned bytes, every field, and WireError for whatever is not one."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
import torch

from adapters import resealed
from capfl.errors import WireError
from capfl.types import Evaluation, HeldOut, Score, Tally, Validation
from capfl.wire import (
    Codec,
    decode_evaluation,
    decode_validation,
    encode_evaluation,
    encode_validation,
    schema_hash,
)
from capfl.wire.values import VALUES
from scored import completed, right

TEMPLATE = {"q.A": torch.zeros(3, 4), "q.B": torch.zeros(2, 3), "v.A": torch.zeros(2, 4), "v.B": torch.zeros(2, 2)}
SCHEMA = schema_hash(TEMPLATE, "base")
FP32 = Codec(VALUES["fp32"])
SCORES = {"base": right(1, 8, 2.5), "global": right(5, 8, 1.0), "personal": right(8, 8, 0.0)}
SAID = Evaluation(11, "site", 12, HeldOut(8, 0.25, 0.375), SCORES, {"q": 3, "v": 1})
VALID = Validation(4, "site", right(3, 7, 1.5))
NAMES = ("accuracy", "perplexity", "token_accuracy", "rouge_l")
WRITTEN = replace(SAID, test=HeldOut(8), scores={"personal": completed(30, 40, 20.0, rouge_l=Tally(2.5, 6))})


def evaluation(said: Evaluation = SAID) -> bytes:
    return encode_evaluation(said, FP32, SCHEMA, TEMPLATE, NAMES)


def read(blob: bytes) -> Evaluation:
    return decode_evaluation(blob, FP32, SCHEMA, TEMPLATE, NAMES)[0]


def double(number: float) -> str:
    return struct.pack("<d", number).hex()


# -- the bytes themselves: a change of these is a change of the format: raise VERSION with it ------------------


def test_golden_validation():
    blob = encode_validation(VALID, FP32, SCHEMA)
    told = "4350464c0403010004000000" + SCHEMA.hex() + "00" * 16 + "0400" + b"site".hex()
    body = "083e0000000003000100400101000800" + double(zlib.crc32(b"accuracy\nperplexity\ntoken_accuracy"))
    body += "0203000100800304002000000000000000f83f0000000000001c4000000000000008400000000000001c40"
    assert blob[:-4].hex() == told + body
    assert decode_validation(blob, FP32, SCHEMA) == (VALID, {"header": len(blob) - 62, "scores": 62})


def test_golden_evaluation():
    blob = evaluation()
    told = "4350464c040401000b000000" + SCHEMA.hex() + "0c000000" + "00" * 12 + "0400" + b"site".hex()
    body = (
        "08b0000000" "0003000100" "e0" "0101000800" + double(zlib.crc32("\n".join(NAMES).encode()))
        + "0204000100" "80" "030c006000"
        "0000000000000440" "0000000000002040" "000000000000f03f" "0000000000002040"  # 2.5 nats of 8, 1 of 8
        "000000000000f03f" "0000000000002040" "0000000000001440" "0000000000002040"  # 1 of 8, 5 of 8
        "0000000000000000" "0000000000002040" "0000000000002040" "0000000000002040"  # 0 of 8, 8 of 8
        "0403001800" "0000000000002040" "000000000000d03f" "000000000000d83f"  # 8 items, 0.25 and 0.375
        "0502001000" "0000000000000840" "000000000000f03f"  # ranks 3 and 1
    )  # fmt: skip
    assert blob[:-4].hex() == told + body
    whole = {"header": len(blob) - 176, "scores": 176}
    assert decode_evaluation(blob, FP32, SCHEMA, TEMPLATE, NAMES) == (SAID, whole)


def test_completions_are_measured_by_what_measures_them():
    assert read(evaluation(WRITTEN)) == WRITTEN


def test_fewer_models_and_no_chance():
    many = 2**32 - 1
    said = replace(SAID, test=HeldOut(many), scores={"personal": completed(0, many, 2.5e15, rouge_l=Tally(0.5, 3))})
    assert read(evaluation(said)) == said


# -- what is refused --------------------------------------------------------------------------------------

AGREED = 42 + 5 + 6 + 5  # behind header, section, marks and the head of the vector
SCORE = AGREED + 8 + 6 + 5
TEST, RANK = SCORE + 96 + 5, SCORE + 96 + 29 + 5


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (8, struct.pack("<I", 0), "round 0"),
        (20, struct.pack("<I", 0), "0 training items"),
        (24, struct.pack("<I", 7), "7 steps"),
        (28, struct.pack("<d", 1.5), "loss 1.5"),
        (42, b"\x09", "something else than one section SCORES"),
        (52, b"\xc0", "12 numbers for the scores of 2 models by 1 metrics"),
        (AGREED, struct.pack("<d", 7), "measures other metrics than accuracy, perplexity, token_accuracy, rouge_l"),
        (SCORE - 6, b"\xc0", "12 numbers for the scores of 3 models by 2 metrics"),
        (SCORE - 6, b"\x10", "measured rouge_l; of choices it should be accuracy"),
        (SCORE + 16, struct.pack("<d", 9), "scored base with accuracy 9 of 8"),
        (SCORE + 16, struct.pack("<d", 0.5), "scored base with accuracy 0.5 of 8"),
        (SCORE + 16, struct.pack("<d", -1), "scored base with accuracy -1 of 8"),
        (SCORE + 24, struct.pack("<d", 2.0**32), "of 4.29497e"),
        (SCORE + 24, struct.pack("<d", 7), "accuracy 1 of 7, its loss is over 8"),
        (SCORE + 16, struct.pack("<dd", 0, 0), "scored base with accuracy 0 of 0"),
        (SCORE, struct.pack("<d", float("nan")), "Scores.scores cannot be read: there are numbers that are not"),
        (SCORE, struct.pack("<d", 8_000_001), "a loss of 8e.06 over 8"),
        (SCORE, struct.pack("<d", -0.1), "a loss of -0.1 over 8"),
        (SCORE, struct.pack("<4d", 2.5, 7, 1, 7), "different numbers of items"),
        (TEST, struct.pack("<d", 0), r"test items, .*\[0.0, 0.25, 0.375\]"),
        (TEST, struct.pack("<d", 9), "scored 8 items, and has 9"),
        (TEST, struct.pack("<d", 7), "accuracy 1 of 8, and has 7 items"),
        (TEST + 8, struct.pack("<d", -0.1), r"\[8.0, -0.1, 0.375\]"),
        (RANK, struct.pack("<d", 4), "rank 4 in 'q', of 1 to 3"),
        (RANK + 8, struct.pack("<d", 0), "rank 0 in 'v', of 1 to 2"),
    ],
)
def test_a_field_that_is_wrong_although_the_checksum_is_right(at: int, new: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        read(resealed(evaluation(), at, new))


@pytest.mark.parametrize(
    ("tallies", "message"),
    [
        ({"perplexity": Tally(19.0, 40)}, "perplexity 19 of 40, its loss is 20 of 40"),
        ({"token_accuracy": Tally(30, 39)}, "token_accuracy 30 of 39, its loss is over 40"),
        ({"token_accuracy": Tally(30.5, 40)}, "token_accuracy 30.5 of 40"),
        ({"rouge_l": Tally(6.5, 6)}, "rouge_l 6.5 of 6"),
        ({"rouge_l": Tally(2.5, 9)}, "rouge_l 2.5 of 9, and has 8 items"),
        ({"rouge_l": Tally(2.5, 0)}, "rouge_l 2.5 of 0"),
    ],
)
def test_metrics_that_no_answers_can_have(tallies: dict[str, Tally], message: str) -> None:
    score = WRITTEN.scores["personal"]
    wrong = Score(score.loss, {**score.metrics, **tallies})
    with pytest.raises(WireError, match=f"scored personal with {message}"):
        evaluation(replace(WRITTEN, scores={"personal": wrong}))


def test_a_site_of_other_metrics_is_refused() -> None:
    for names in (("accuracy",), (*NAMES, "exact_match"), tuple(reversed(NAMES))):
        with pytest.raises(WireError, match=r"'site' measures other metrics than .*; align the configs"):
            decode_evaluation(evaluation(), FP32, SCHEMA, TEMPLATE, names)


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


@pytest.mark.parametrize("score", [right(0, 0, 0.0), right(2, 1, 0.0), right(1, 1, float("nan")), right(0, 3, 4e6),
                                   right(1, 1, -0.1)])  # fmt: skip
def test_a_client_does_not_send_what_would_be_refused(score: Score) -> None:
    with pytest.raises(WireError, match="scored global with"):
        encode_validation(replace(VALID, score=score), FP32, SCHEMA)
    with pytest.raises(WireError, match="scored global with"):
        evaluation(replace(SAID, scores={"global": score}))
