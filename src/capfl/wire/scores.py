"""What clients say of their models' scores, to bytes and back: validations and evaluations, a record each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.types import Adapter, Evaluation, HeldOut, Score, Validation
from capfl.wire import records
from capfl.wire.codec import Codec
from capfl.wire.header import LARGEST_LOSS, Header, seal, unseal
from capfl.wire.records import vector
from capfl.wire.sections import Section, split, write

VALIDATION, EVALUATION = 3, 4
MODELS = ("base", "global", "personal")
_MOST = 2.0**32  # items, tokens or ranks: more than anybody has


@dataclass(frozen=True)
class Scores:
    """The record of a message. A validation has the score of ``global``, and nothing else.

    Attributes:
        models: marks of those of ``MODELS`` that were scored.
        scores: of each of them ``correct``, ``total`` and ``nll``; None where none was scored.
        test: the number of test items, and where it is known ``chance`` and ``majority`` of ``HeldOut``.
        ranks: that the client keeps, of every module in the order of the adapter.
    """

    models: Tensor = vector("marks")
    scores: Tensor | None = vector("float64", optional=True)
    test: Tensor | None = vector("float64", optional=True)
    ranks: Tensor | None = vector("float64", optional=True)

    @staticmethod
    def of(scores: dict[str, Score]) -> Scores:
        there = [scores[model] for model in MODELS if model in scores]
        numbers = [number for score in there for number in (score.correct, score.total, score.nll)]
        marks = torch.tensor([float(model in scores) for model in MODELS])
        return Scores(marks, scores=_doubles(*numbers) if numbers else None)

    def read(self, client: str) -> dict[str, Score]:
        """The scores by model. Raises WireError: they are none that there can be."""
        models = [model for model, mark in zip(MODELS, self.models.tolist(), strict=False) if mark]
        numbers = [] if self.scores is None else self.scores.tolist()
        if len(self.models) != len(MODELS) or len(numbers) != 3 * len(models):
            raise WireError(f"client {client!r} sent {len(numbers)} numbers for the scores of {len(models)} models")
        found = {}
        for model, correct, total, nll in zip(models, numbers[::3], numbers[1::3], numbers[2::3], strict=True):
            if not (0 <= correct <= total and correct.is_integer() and _is_count(total)):
                raise WireError(f"client {client!r} scored {model} with {correct:g} of {total:g}")
            if not 0 <= nll <= LARGEST_LOSS * total:
                raise WireError(f"client {client!r} scored {model} with nll {nll}")
            found[model] = Score(int(correct), int(total), nll)
        return found


def encode_validation(message: Validation, codec: Codec, schema: bytes) -> bytes:
    """Raises WireError where the score is none that ``decode_validation`` would take."""
    header = Header(VALIDATION, codec.values.tag, message.round, schema, message.client)
    return _sealed(header, Scores.of({"global": message.score}))


def decode_validation(blob: bytes, codec: Codec, schema: bytes) -> tuple[Validation, dict[str, int]]:
    """The validation, and how many bytes belong to each part.

    Raises:
        WireError: it does not fit.
    """
    header, said, parts = _opened(blob, VALIDATION, codec, schema)
    scores = said.read(header.client)
    if list(scores) != ["global"]:
        raise WireError(f"validation of client {header.client!r} has scores of {', '.join(scores) or 'nothing'}")
    return Validation(header.round, header.client, scores["global"]), parts


def encode_evaluation(message: Evaluation, codec: Codec, schema: bytes, template: Adapter) -> bytes:
    """Raises WireError where a score is none that ``decode_evaluation`` would take."""
    header = Header(EVALUATION, codec.values.tag, message.round, schema, message.client, message.n_train)
    said, test = Scores.of(dict(message.scores)), message.test
    known = (test.chance, test.majority) if test.chance is not None and test.majority is not None else ()
    ranks = _doubles(*(message.ranks[module] for module in algebra.ranks(template)))
    return _sealed(header, Scores(said.models, scores=said.scores, test=_doubles(test.number, *known), ranks=ranks))


def decode_evaluation(blob: bytes, codec: Codec, schema: bytes, template: Adapter) -> tuple[Evaluation, dict[str, int]]:
    """The evaluation, and how many bytes belong to each part.

    Raises:
        WireError: it does not fit, or says what cannot be: no items, more right than there are, ranks above the
            template's, numbers that are not finite.
    """
    header, said, parts = _opened(blob, EVALUATION, codec, schema)
    client, most = header.client, algebra.ranks(template)
    test, kept = ([] if numbers is None else numbers.tolist() for numbers in (said.test, said.ranks))
    if len(test) not in (1, 3) or not _is_count(test[0]) or not all(0 <= share <= 1 for share in test[1:]):
        raise WireError(f"client {client!r} says of its test items, chance and the most frequent answer: {test}")
    if len(kept) != len(most):
        raise WireError(f"client {client!r} has ranks of {len(kept)} modules, the adapter has {len(most)}")
    for (module, largest), rank in zip(most.items(), kept, strict=True):
        if not _is_count(rank) or rank > largest:
            raise WireError(f"client {client!r} has rank {rank:g} in {module!r}, of 1 to {largest}")
    ranks = dict(zip(most, map(int, kept), strict=True))
    held_out = HeldOut(int(test[0]), *test[1:])
    return Evaluation(header.round, client, header.n_train, held_out, said.read(client), ranks), parts


def _sealed(header: Header, said: Scores) -> bytes:
    said.read(header.client)  # what the server would refuse is not sent
    return seal(header, write(Section.SCORES, records.write(said)))


def _opened(blob: bytes, kind: int, codec: Codec, schema: bytes) -> tuple[Header, Scores, dict[str, int]]:
    """Header, record, and how many bytes belong to each part."""
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
    n = len(found[Section.SCORES])
    return header, records.read(found[Section.SCORES], Scores), {"header": len(blob) - n, "scores": n}


def _doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _is_count(number: float) -> bool:
    """Is it a whole number, at least 1, of what there may be so many of?"""
    return 1 <= number < _MOST and number.is_integer()
