"""Validations and evaluations: pinned bytes, every field, and WireError for whatever is not one."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import strategies as st

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
    blob, said = encode_validation(VALID, FP32, SCHEMA), b'{"scores":{"global":{"correct":3,"total":7,"nll":1.5}}}'
    told = "4350464c0203010004000000" + SCHEMA.hex() + "00" * 16 + "0400" + b"site".hex()
    assert blob[:-4] == bytes.fromhex(told + "0837000000") + said
    assert decode_validation(blob, FP32, SCHEMA) == (VALID, {"header": len(blob) - 55, "scores": 55})


def test_golden_evaluation():
    blob = evaluation()
    told = "4350464c020401000b000000" + SCHEMA.hex() + "0c000000" + "00" * 12 + "0400" + b"site".hex()
    said = (
        b'{"scores":{"base":{"correct":1,"total":8,"nll":2.5},"global":{"correct":5,"total":8,"nll":1.0},'
        b'"personal":{"correct":8,"total":8,"nll":0.0}},"test":{"number":8,"chance":0.25,"majority":0.375},'
        b'"ranks":[3,1]}'
    )
    assert blob[:-4] == bytes.fromhex(told + "08") + len(said).to_bytes(4, "little") + said
    parts = {"header": len(blob) - len(said), "scores": len(said)}
    assert decode_evaluation(blob, FP32, SCHEMA, TEMPLATE) == (SAID, parts)


# -- what comes back --------------------------------------------------------------------------------------

counted = st.tuples(st.integers(1, 2**32 - 1), st.floats(0, 1), st.floats(0, 1e4)).map(
    lambda t: Score(int(t[1] * t[0]), t[0], t[2])
)
shares = st.floats(0, 1)


# -- what is refused --------------------------------------------------------------------------------------


def saying(old: str, new: str, blob: bytes = b"") -> bytes:
    """The evaluation with another text, and what has to fit it."""
    blob = blob or evaluation()
    text = blob[47:-4].decode()
    assert old in text
    body = text.replace(old, new, 1).encode()
    return resealed(blob[:42] + b"\x08" + len(body).to_bytes(4, "little") + body + blob[-4:])


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (8, struct.pack("<I", 0), "round 0"),
        (20, struct.pack("<I", 0), "0 training items"),
        (24, struct.pack("<I", 7), "7 steps"),
        (28, struct.pack("<d", 1.5), "loss 1.5"),
        (42, b"\x09", "something else than one section SCORES"),
        (47, b"[", "cannot be read: Invalid JSON"),
    ],
)
def test_a_field_that_is_wrong_although_the_checksum_is_right(at: int, new: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        read(resealed(evaluation(), at, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"base"', '"best"', "scored 'best', which is none of base, global, personal"),
        ('"correct":1', '"correct":9', "scored base with 9 of 8"),
        ('"correct":1', '"correct":-1', "scored base with -1 of 8"),
        ('"correct":1', '"correct":"1"', "valid integer"),
        ('"correct":1,"total":8', '"correct":0,"total":0', "scored base with 0 of 0"),
        ('"total":8', f'"total":1{"0" * 400}', "scored base with 1 of 1000"),
        ('"nll":2.5', '"nll":NaN', "scored base with nll nan"),
        ('"nll":2.5', '"nll":8000001', "scored base with nll 8000001.0"),
        ('"nll":2.5', f'"nll":2.5{" " * 2**16}', "bytes, 65536 at most"),
        ('"number":8', '"number":0', "0 test items"),
        ('"chance":0.25', '"chance":NaN', "chance is nan"),
        ('"majority":0.375', '"majority":-0.1', "the majority -0.1"),
        ("[3,1]", "[4,1]", "rank 4 in 'q', of 1 to 3"),
        ("[3,1]", "[3,0]", "rank 0 in 'v', of 1 to 2"),
        ("[3,1]", "[3]", "ranks of 1 modules, the adapter has 2"),
        ("[3,1]", "[" * 5000, "cannot be read"),
    ],
)
def test_scores_that_cannot_be(old: str, new: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        read(saying(old, new))


def test_a_validation_is_of_the_global_adapter_alone():
    blob = encode_validation(VALID, FP32, SCHEMA)
    with pytest.raises(WireError, match="has scores of base"):
        decode_validation(saying("global", "base", blob), FP32, SCHEMA)
    with pytest.raises(WireError, match="12 training items"):
        decode_validation(resealed(blob, 20, struct.pack("<I", 12)), FP32, SCHEMA)


@pytest.mark.parametrize("score", [Score(0, 0, 0.0), Score(2, 1, 0.0), Score(1, 1, float("nan")), Score(0, 3, 4e6),
                                   Score(1, 1, -0.1)])  # fmt: skip
def test_a_client_does_not_send_what_would_be_refused(score: Score) -> None:
    with pytest.raises(WireError, match="scored global with"):
        encode_validation(replace(VALID, score=score), FP32, SCHEMA)
    with pytest.raises(WireError, match="scored global with"):
        evaluation(replace(SAID, scores={"global": score}))
