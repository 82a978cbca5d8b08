"""What clients say of their models' scores, to bytes and back: validations and evaluations, in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.types import Adapter, Evaluation, HeldOut, Score, Validation
from capfl.wire.codec import Codec
from capfl.wire.header import LARGEST_LOSS, Header, seal, unseal
from capfl.wire.sections import Section, split, write

VALIDATION, EVALUATION = 3, 4
MODELS = ("base", "global", "personal")
_MOST = 2**32  # items or tokens: more than anybody has
_LONGEST = 2**16  # bytes of JSON


@dataclass(frozen=True)
class _Said:
    """The JSON of a message. A validation has the score of ``global`` alone."""

    scores: dict[str, Score]
    test: HeldOut = field(default_factory=HeldOut)
    ranks: tuple[int, ...] = ()  # that the client keeps, of every module in the order of the adapter


_JSON = TypeAdapter(_Said)


def encode_validation(message: Validation, codec: Codec, schema: bytes) -> bytes:
    """Raises WireError where the score is none that ``decode_validation`` would take."""
    header = Header(VALIDATION, codec.values.tag, message.round, schema, message.client)
    return _sealed(header, _Said({"global": message.score}))


def decode_validation(blob: bytes, codec: Codec, schema: bytes) -> tuple[Validation, dict[str, int]]:
    """The validation, and how many bytes belong to each part.

    Raises:
        WireError: it does not fit.
    """
    header, said, parts = _opened(blob, VALIDATION, codec, schema)
    if list(said.scores) != ["global"]:
        raise WireError(f"validation of client {header.client!r} has scores of {', '.join(said.scores) or 'nothing'}")
    return Validation(header.round, header.client, said.scores["global"]), parts


def encode_evaluation(message: Evaluation, codec: Codec, schema: bytes, template: Adapter) -> bytes:
    """Raises WireError where a score is none that ``decode_evaluation`` would take."""
    header = Header(EVALUATION, codec.values.tag, message.round, schema, message.client, message.n_train)
    scores = {model: message.scores[model] for model in MODELS if model in message.scores}
    ranks = tuple(message.ranks[module] for module in algebra.ranks(template))
    return _sealed(header, _Said(scores, message.test, ranks))


def decode_evaluation(blob: bytes, codec: Codec, schema: bytes, template: Adapter) -> tuple[Evaluation, dict[str, int]]:
    """The evaluation, and how many bytes belong to each part.

    Raises:
        WireError: it does not fit, or says what cannot be: no items, more right than there are, ranks above the
            template's, numbers that are not finite.
    """
    header, said, parts = _opened(blob, EVALUATION, codec, schema)
    client, test = header.client, said.test
    if not 1 <= test.number < _MOST:
        raise WireError(f"client {client!r} says that it has {test.number} test items")
    if not all(share is None or 0 <= share <= 1 for share in (test.chance, test.majority)):
        raise WireError(f"client {client!r} says that chance is {test.chance} and the majority {test.majority}")
    most = algebra.ranks(template)
    if len(said.ranks) != len(most):
        raise WireError(f"client {client!r} has ranks of {len(said.ranks)} modules, the adapter has {len(most)}")
    ranks = dict(zip(most, said.ranks, strict=True))
    for module, rank in ranks.items():
        if not 1 <= rank <= most[module]:
            raise WireError(f"client {client!r} has rank {rank} in {module!r}, of 1 to {most[module]}")
    return Evaluation(header.round, client, header.n_train, test, said.scores, ranks), parts


def _sealed(header: Header, said: _Said) -> bytes:
    _check(said.scores, header.client)  # what the server would refuse is not sent
    return seal(header, write(Section.SCORES, _JSON.dump_json(said, exclude_defaults=True)))


def _opened(blob: bytes, kind: int, codec: Codec, schema: bytes) -> tuple[Header, _Said, dict[str, int]]:
    """Header, content, and how many bytes belong to each part."""
    header, body = unseal(blob, kind, codec.values.tag, schema)
    client = header.client
    if header.round < 1:
        raise WireError(f"scores of client {client!r} are for round 0, rounds count from 1")
    if bool(header.n_train) != (kind == EVALUATION) or header.steps or header.loss:  # the other fields say nothing
        claims = f"{header.n_train} training items, {header.steps} steps and loss {header.loss}"
        raise WireError(f"scores of client {client!r} come with {claims}")
    found, rest = split(body, (Section.SCORES,))
    if not found or len(rest):
        raise WireError(f"client {client!r} sent something else than one section SCORES")
    data = bytes(found[Section.SCORES])
    if len(data) > _LONGEST:
        raise WireError(f"scores of client {client!r} have {len(data)} bytes, {_LONGEST} at most")
    try:
        said = _JSON.validate_json(data, strict=True)
    except ValidationError as error:
        raise WireError(f"scores of client {client!r} cannot be read: {error.errors()[0]['msg']}") from error
    _check(said.scores, client)
    return header, said, {"header": len(blob) - len(data), "scores": len(data)}


def _check(scores: Mapping[str, Score], client: str) -> None:
    if unknown := scores.keys() - set(MODELS):
        raise WireError(f"client {client!r} scored {min(unknown)!r}, which is none of {', '.join(MODELS)}")
    for model, score in scores.items():
        if not 0 <= score.correct <= score.total < _MOST or not score.total:
            raise WireError(f"client {client!r} scored {model} with {score.correct} of {score.total}")
        if not 0 <= score.nll <= LARGEST_LOSS * score.total:
            raise WireError(f"client {client!r} scored {model} with nll {score.nll}")
