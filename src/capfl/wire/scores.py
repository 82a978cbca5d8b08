"""What clients say of their models' scores, to bytes and back: validations and evaluations, a record each."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from capfl import adapter as algebra
from capfl.errors import WireError
from capfl.metrics import TASKS, VALIDATED, metric, of_task
from capfl.types import Adapter, Evaluation, HeldOut, Score, Tally, Validation
from capfl.wire import records
from capfl.wire.codec import Codec
from capfl.wire.header import LARGEST_LOSS, Header, seal, unseal
from capfl.wire.records import vector
from capfl.wire.sections import Section, split, write

VALIDATION, EVALUATION = 3, 4
MODELS = ("base", "global", "personal")
WHOLE = ("accuracy", "token_accuracy", "exact_match")  # metrics whose sums are whole numbers
_MOST = 2.0**32  # items, tokens or ranks: more than anybody has


@dataclass(frozen=True)
class Scores:
    """The record of a message. A validation has the score of ``global``, and nothing else.

    Attributes:
        models: marks of those of ``MODELS`` that were scored.
        agreed: the checksum of the metrics' names that both sides must have agreed on, see ``checksum``.
        measured: marks of those of these metrics that the client's items were measured by; None: no model was scored.
        scores: of each model sum and count of its loss, and then of each metric that is marked; None: as ``measured``.
        test: the number of test items, and where it is known ``chance`` and ``majority`` of ``HeldOut``.
        ranks: that the client keeps, of every module in the order of the adapter.
    """

    models: Tensor = vector("marks")
    agreed: Tensor = vector("float64")
    measured: Tensor | None = vector("marks", optional=True)
    scores: Tensor | None = vector("float64", optional=True)
    test: Tensor | None = vector("float64", optional=True)
    ranks: Tensor | None = vector("float64", optional=True)

    @staticmethod
    def of(scores: Mapping[str, Score], names: Sequence[str]) -> Scores:
        there = [scores[model] for model in MODELS if model in scores]
        measured = [name for name in names if there and name in there[0].metrics]
        tallies = [tally for score in there for tally in (score.loss, *(score.metrics[name] for name in measured))]
        numbers = [number for tally in tallies for number in (tally.sum, tally.count)]
        return Scores(
            torch.tensor([float(model in scores) for model in MODELS]),
            _doubles(checksum(names)),
            measured=torch.tensor([float(name in measured) for name in names]) if there else None,
            scores=_doubles(*numbers) if there else None,
        )

    def read(self, client: str, names: Sequence[str], items: int | None) -> dict[str, Score]:
        """The scores by model.

        Args:
            names: of the metrics that were agreed on.
            items: how many the client says it has; None: it does not say.

        Raises:
            WireError: they are none that there can be, or of other metrics.
        """
        if self.agreed.tolist() != [checksum(names)]:
            raise WireError(
                f"client {client!r} measures other metrics than {', '.join(names)}: evaluation.metrics differs between "
                "the sites; align the configs"
            )
        models = [model for model, mark in zip(MODELS, self.models.tolist(), strict=False) if mark]
        marks = [] if self.measured is None else self.measured.tolist()
        measured = [name for name, mark in zip(names, marks, strict=False) if mark]
        numbers = [] if self.scores is None else self.scores.tolist()
        expected = 2 * len(models) * (1 + len(measured))
        if len(self.models) != len(MODELS) or len(marks) != (len(names) if models else 0) or len(numbers) != expected:
            raise WireError(
                f"client {client!r} sent {len(numbers)} numbers for the scores of {len(models)} models by "
                f"{len(measured)} metrics"
            )
        found: dict[str, Score] = {}
        for model in models:
            tallies, numbers = numbers[: 2 * (1 + len(measured))], numbers[2 * (1 + len(measured)) :]
            loss, *others = zip(tallies[::2], tallies[1::2], strict=True)
            _check_loss(client, model, *loss)
            score = Score(_tally(*loss), dict(zip(measured, (_tally(*other) for other in others), strict=True)))
            for name, other in zip(measured, others, strict=True):
                _check_metric(client, model, name, *other, loss=score.loss, items=items)
            found[model] = score
        counts = {tuple(tally.count for tally in (own.loss, *own.metrics.values())) for own in found.values()}
        if len(counts) > 1:
            raise WireError(f"client {client!r} scored its models on different numbers of items or tokens")
        return found


def checksum(names: Sequence[str]) -> int:
    """CRC-32 of the names of metrics, joined by newlines."""
    return zlib.crc32("\n".join(names).encode())


def _check_loss(client: str, model: str, sum: float, count: float) -> None:
    if not _is_count(count) or not 0 <= sum <= LARGEST_LOSS * count:
        raise WireError(f"client {client!r} scored {model} with a loss of {sum:g} over {count:g}")


def _check_metric(
    client: str, model: str, name: str, sum: float, count: float, *, loss: Tally, items: int | None
) -> None:
    """Raises WireError: a metric has a sum or a count that it cannot have beside the loss."""
    known = metric(name)
    says = f"client {client!r} scored {model} with {name} {sum:g} of {count:g}"
    if not _is_count(count):
        raise WireError(says)
    if not known.is_share:
        if (sum, count) != (loss.sum, loss.count):
            raise WireError(f"{says}, its loss is {loss.sum:g} of {loss.count}")
        return
    if not 0 <= sum <= count or (name in WHOLE and not sum.is_integer()):
        raise WireError(says)
    if known.compare is None and count != loss.count:
        raise WireError(f"{says}, its loss is over {loss.count}")
    if known.counts == "items" and items is not None and count > items:
        raise WireError(f"{says}, and has {items} items")


def encode_validation(message: Validation, codec: Codec, schema: bytes) -> bytes:
    """Raises WireError where the score is none that ``decode_validation`` would take."""
    header = Header(VALIDATION, codec.values.tag, message.round, schema, message.client)
    return _sealed(header, Scores.of({"global": message.score}, VALIDATED), VALIDATED, None)


def decode_validation(blob: bytes, codec: Codec, schema: bytes) -> tuple[Validation, dict[str, int]]:
    """The validation, and how many bytes belong to each part.

    Raises:
        WireError: it does not fit.
    """
    header, said, parts = _opened(blob, VALIDATION, codec, schema)
    scores = said.read(header.client, VALIDATED, None)
    if list(scores) != ["global"]:
        raise WireError(f"validation of client {header.client!r} has scores of {', '.join(scores) or 'nothing'}")
    score = scores["global"]
    if tuple(score.metrics) not in [of_task(VALIDATED, task) for task in TASKS]:
        raise WireError(f"validation of client {header.client!r} has {', '.join(score.metrics) or 'no metric'}")
    return Validation(header.round, header.client, score), parts


def encode_evaluation(
    message: Evaluation, codec: Codec, schema: bytes, template: Adapter, names: Sequence[str]
) -> bytes:
    """Raises WireError where a score is none that ``decode_evaluation`` would take.

    Args:
        names: of the run's metrics.
    """
    header = Header(EVALUATION, codec.values.tag, message.round, schema, message.client, message.n_train)
    said, test = Scores.of(message.scores, names), message.test
    known = (test.chance, test.majority) if test.chance is not None and test.majority is not None else ()
    ranks = _doubles(*(message.ranks[module] for module in algebra.ranks(template)))
    whole = replace(said, test=_doubles(test.number, *known), ranks=ranks)
    return _sealed(header, whole, names, test.number)


def decode_evaluation(
    blob: bytes, codec: Codec, schema: bytes, template: Adapter, names: Sequence[str]
) -> tuple[Evaluation, dict[str, int]]:
    """The evaluation, and how many bytes belong to each part.

    Args:
        names: of the run's metrics.

    Raises:
        WireError: it does not fit, or says what cannot be: no items, more right than there are, metrics that were not
            agreed on or are not of its task, ranks above the template's, numbers that are not finite.
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
    held_out, scores = HeldOut(int(test[0]), *test[1:]), said.read(client, names, int(test[0]))
    asked = of_task(names, held_out.task)
    for score in scores.values():
        if tuple(score.metrics) != asked:
            found, wanted = (", ".join(some) or "nothing" for some in (score.metrics, asked))
            raise WireError(f"client {client!r} measured {found}; of {held_out.task} it should be {wanted}")
        if held_out.task == "choices" and score.loss.count != held_out.number:
            raise WireError(f"client {client!r} scored {score.loss.count} items, and has {held_out.number}")
    return Evaluation(header.round, client, header.n_train, held_out, scores, ranks), parts


def _sealed(header: Header, said: Scores, names: Sequence[str], items: int | None) -> bytes:
    said.read(header.client, names, items)  # what the server would refuse is not sent
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


def _tally(sum: float, count: float) -> Tally:
    return Tally(sum, int(count))


def _is_count(number: float) -> bool:
    """Is it a whole number from 1 to below ``_MOST``?"""
    return 1 <= number < _MOST and number.is_integer()
