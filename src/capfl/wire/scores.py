"""What clients say of their models' scores, to bytes and back: validations and evaluations.

A score is one byte for the model's place in ``MODELS``, four for ``correct``, four for ``total``, eight for ``nll``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.types import Adapter, Evaluation, HeldOut, Score, Validation
from capfl.wire.codec import Codec
from capfl.wire.header import LARGEST_LOSS, Header, seal, unseal
from capfl.wire.sections import Section, read, write

VALIDATION, EVALUATION = 3, 4
MODELS = ("base", "global", "personal")

_SCORE = struct.Struct("<BIId")
_NUMBER = struct.Struct("<I")
_ACCURACIES = struct.Struct("<dd")
_RANK = struct.Struct("<H")


def encode_validation(message: Validation, codec: Codec, schema: bytes) -> bytes:
    """Raises WireError where the score is none that ``decode_validation`` would take."""
    body = _scores({"global": message.score}, message.client)
    return seal(Header(VALIDATION, codec.values.tag, message.round, schema, message.client), body)


def decode_validation(blob: bytes, codec: Codec, schema: bytes) -> tuple[Validation, dict[str, int]]:
    """The validation, and how many bytes belong to each part.

    Raises:
        WireError: it does not fit.
    """
    header, body = unseal(blob, VALIDATION, codec.values.tag, schema)
    _check(header, with_items=False)
    (data,) = _sections(body, (Section.SCORES,), header.client)
    scores = _read_scores(data, header.client)
    if list(scores) != ["global"]:
        raise WireError(f"validation of client {header.client!r} has scores of {', '.join(scores) or 'nothing'}")
    return Validation(header.round, header.client, scores["global"]), _parts(blob, len(data))


def encode_evaluation(message: Evaluation, codec: Codec, schema: bytes, template: Adapter) -> bytes:
    """Raises WireError where a score is none that ``decode_evaluation`` would take."""
    test = _NUMBER.pack(message.test.number)
    if message.test.chance is not None and message.test.majority is not None:
        test += _ACCURACIES.pack(message.test.chance, message.test.majority)
    ranks = b"".join(_RANK.pack(message.ranks[module]) for module in algebra.ranks(template))
    body = _scores(message.scores, message.client) + write(Section.TEST, test) + write(Section.KEPT, ranks)
    header = Header(EVALUATION, codec.values.tag, message.round, schema, message.client, message.n_train)
    return seal(header, body)


def decode_evaluation(blob: bytes, codec: Codec, schema: bytes, template: Adapter) -> tuple[Evaluation, dict[str, int]]:
    """The evaluation, and how many bytes belong to each part.

    Raises:
        WireError: it does not fit, or says what cannot be: no items, more right than there are, ranks above the
            template's, numbers that are not finite.
    """
    header, body = unseal(blob, EVALUATION, codec.values.tag, schema)
    _check(header, with_items=True)
    scores, test, kept = _sections(body, (Section.SCORES, Section.TEST, Section.KEPT), header.client)
    said = Evaluation(
        round=header.round,
        client=header.client,
        n_train=header.n_train,
        test=_read_test(test, header.client),
        scores=_read_scores(scores, header.client),
        ranks=_read_ranks(kept, template, header.client),
    )
    return said, _parts(blob, len(scores) + len(test) + len(kept))


def _check(header: Header, with_items: bool) -> None:
    """Fields of the header that have nothing to say are zero."""
    if header.round < 1:
        raise WireError(f"scores of client {header.client!r} are for round 0, rounds count from 1")
    if bool(header.n_train) != with_items or header.steps or header.loss:
        said = f"{header.n_train} training items, {header.steps} steps and loss {header.loss}"
        raise WireError(f"scores of client {header.client!r} come with {said}")


def _scores(scores: Mapping[str, Score], client: str) -> bytes:
    data = b"".join(
        _SCORE.pack(place, scores[model].correct, scores[model].total, scores[model].nll)
        for place, model in enumerate(MODELS)
        if model in scores
    )
    _read_scores(memoryview(data), client)  # what the server would refuse is not sent
    return write(Section.SCORES, data)


def _read_scores(data: memoryview, client: str) -> dict[str, Score]:
    if len(data) % _SCORE.size:
        raise WireError(f"scores of client {client!r} are cut off")
    found: dict[str, Score] = {}
    last = -1
    for place, correct, total, nll in _SCORE.iter_unpack(data):
        if not last < place < len(MODELS):
            raise WireError(f"client {client!r} scored model {place} twice, in the wrong place, or of {len(MODELS)}")
        if not (0 <= correct <= total and total) or not 0 <= nll <= LARGEST_LOSS * total:
            raise WireError(f"client {client!r} scored {MODELS[place]} with {correct} of {total} and nll {nll}")
        found[MODELS[place]] = Score(correct, total, nll)
        last = place
    return found


def _read_test(data: memoryview, client: str) -> HeldOut:
    if len(data) not in (_NUMBER.size, _NUMBER.size + _ACCURACIES.size):
        raise WireError(f"client {client!r} describes its test items in {len(data)} bytes")
    (number,) = _NUMBER.unpack_from(data)
    if not number:
        raise WireError(f"client {client!r} says that it has no test items")
    if len(data) == _NUMBER.size:
        return HeldOut(number)
    chance, majority = _ACCURACIES.unpack_from(data, _NUMBER.size)
    if not (0 <= chance <= 1 and 0 <= majority <= 1):
        raise WireError(f"client {client!r} says that chance is {chance} and the most frequent answer right {majority}")
    return HeldOut(number, chance, majority)


def _read_ranks(data: memoryview, template: Adapter, client: str) -> dict[str, int]:
    most = algebra.ranks(template)
    if len(data) != _RANK.size * len(most):
        raise WireError(f"client {client!r} has ranks in {len(data)} bytes for {len(most)} modules")
    found = dict(zip(most, (rank for (rank,) in _RANK.iter_unpack(data)), strict=True))
    for module, rank in found.items():
        if not 1 <= rank <= most[module]:
            raise WireError(f"client {client!r} has rank {rank} in {module!r}, of 1 to {most[module]}")
    return found


def _sections(body: memoryview, expected: tuple[Section, ...], client: str) -> list[memoryview]:
    found = list(read(body, expected))
    if tuple(tag for tag, _ in found) != expected:
        named = ", ".join(tag.name for tag, _ in found) or "nothing"
        raise WireError(f"client {client!r} sent {named}, expected {', '.join(tag.name for tag in expected)}")
    return [data for _, data in found]


def _parts(blob: bytes, n_scores: int) -> dict[str, int]:
    return {"header": len(blob) - n_scores, "scores": n_scores}
