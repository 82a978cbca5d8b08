"""What fuzz_wire.py damages: valid messages of every kind and codec, and how each is decoded all the way."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache, partial

import numpy as np
import torch

from capfl import adapter as algebra
from capfl.maths.masks import KEY, Whole, kind_of
from capfl.metrics import DEFAULTS
from capfl.types import (
    EVERYBODY,
    Adapter,
    ClientState,
    Evaluation,
    Group,
    HeldOut,
    Introduction,
    Offer,
    Score,
    ServerState,
    Tally,
    Update,
)  # fmt: skip
from capfl.wire import (
    Codec,
    Records,
    advance,
    broadcast,
    compensate,
    decode_broadcast,
    decode_evaluation,
    decode_introduction,
    decode_update,
    encode_broadcast,
    encode_evaluation,
    encode_introduction,
    encode_update,
    is_relayed,
    nothing,
    receive,
    relay,
    relayed,
    schema_hash,
    with_version,
)
from capfl.wire.records import vector
from capfl.wire.secure import (
    Dealt,
    Done,
    Masked,
    Offered,
    Opened,
    decode_dealt,
    decode_done,
    decode_masked,
    decode_offered,
    decode_opened,
    encode_dealt,
    encode_done,
    encode_masked,
    encode_offered,
    encode_opened,
)  # fmt: skip
from capfl.wire.totals import Totals
from capfl.wire.values import VALUES

SHAPES = {"q.A": (2, 12), "q.B": (16, 2), "v.A": (2, 12), "v.B": (8, 2)}
TEMPLATE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
SCHEMA = schema_hash(TEMPLATE, "fuzz")
NOTHING = nothing(TEMPLATE)
NUMBER = 4  # of the version to come
TOTALS = Totals(("base", "personal"), DEFAULTS, algebra.ranks(TEMPLATE), clients=5)
OTHERS = ("east", "north", "west")


@dataclass(frozen=True)
class Described:
    features: torch.Tensor = vector("bf16")


@dataclass(frozen=True)
class Posterior:
    alpha: torch.Tensor = vector("positive")
    marks: torch.Tensor | None = vector("marks", optional=True)


RECORDS = Records(grouping=Described, ranks=Posterior)
SAID = {
    "grouping": Described(torch.linspace(-2, 2, 9)),
    "ranks": Posterior(torch.linspace(0.5, 4, 8), marks=torch.ones(8)),
}
WAYS: dict[str, dict[str, float | str]] = {
    "dense": {},
    "top": {"density": 0.15},
    "random": {"density": 0.25, "mask": "random"},
    "by rank": {"density": 0.25, "mask": "random"},
}
CODECS = [Codec(kind, **settings) for kind in VALUES.values() for settings in WAYS.values()]  # type: ignore[arg-type]
IMPORTANCE = [np.array([3.0, 0.0, 1.0, 0.5]) if way == "by rank" else None for _ in VALUES for way in WAYS]


def normal(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


START = normal(0)


@cache
def valid(codec: int) -> list[bytes]:
    """Messages as they should be."""
    chosen, importance = CODECS[codec], IMPORTANCE[codec]
    body, _ = compensate(normal(2), {}, chosen, TEMPLATE, NUMBER, importance)
    group = Group(START, START)
    for number in (1, 2, 3):
        target = {name: t + normal(10 + number)[name] for name, t in START.items()}
        if number == 2:  # a difference as a client sent it
            passed = relay([(12, chosen.encode(algebra.subtract(target, group.known), TEMPLATE, number, importance))])
            group = with_version(group, changed(chosen, group.known, passed, number), passed, NOTHING)
        else:
            group = advance(replace(group, adapter=target), target, number, chosen, TEMPLATE, importance)
    state = ServerState(5, {EVERYBODY: group}, version=3)  # more than a turn in some rounds
    if len(group.log) < 3:  # a codec that loses nothing: its whole adapters need no differences
        group = replace(group, log=3 * (passed,))
    knowing = replace(state, groups={EVERYBODY: group}, versions={"site": 2})
    told = [broadcast(knowing, "site", TEMPLATE, NOTHING)]
    told += [replace(told[0], differences=(b"", *group.log[-2:]))]
    told += [broadcast(replace(state, groups={EVERYBODY: Group(START, group.known)}), "site", TEMPLATE, NOTHING)]
    loss = Tally(4.5, 80)
    tallies = {"perplexity": loss, "token_accuracy": Tally(3, 80), "exact_match": Tally(2, 6), "rouge_l": Tally(2.5, 6)}
    scored = Evaluation(4, "site", 12, HeldOut(8), {"base": Score(loss, tallies)}, algebra.ranks(TEMPLATE))
    return [
        encode_update(Update(4, "site", {}, 12, 7, 1.25, SAID["ranks"]), body, chosen, SCHEMA),
        *(encode_broadcast(replace(message, **SAID), chosen, SCHEMA).blob for message in told),
        encode_evaluation(scored, chosen, SCHEMA, TEMPLATE, DEFAULTS),
        encode_introduction(Introduction(4, "site", 12, SAID["grouping"]), chosen, SCHEMA),
        *secret(chosen),
    ]


def secret(codec: Codec) -> list[bytes]:
    """The messages of secure aggregation: a key, numbers under masks, secrets, sealed shares, and that all is done."""
    offer = Offer("site", bytes(range(KEY)), b"signature", bytes(range(KEY)))
    kind = kind_of(TOTALS.width)
    values = (np.arange(TOTALS.n_values) * 2654435761 % 2**TOTALS.width).astype(kind)
    whole = Whole(values, TOTALS.width, np.arange(TOTALS.n_numbers, dtype=np.uint32))
    opened = {name: bytes([n]) * KEY for n, name in enumerate(OTHERS)}
    return [
        encode_offered(Offered(4, "site", offer), codec, SCHEMA),
        encode_masked(Masked(4, "site", whole), codec, SCHEMA),
        encode_opened(Opened(4, "site", opened), codec, SCHEMA),
        encode_dealt(Dealt(4, "site", [bytes(82) for _ in OTHERS]), codec, SCHEMA),
        encode_done(Done(4, "site"), codec, SCHEMA),
    ]


def decode(blob: bytes, codec: Codec, which: int) -> bool:
    """Message number ``which`` of ``valid``, all the way. Does what comes out fit?"""
    if which == 0:
        message, parts = decode_update(blob, codec, SCHEMA, TEMPLATE, NUMBER, RECORDS)
        found, whole = message.adapter, message.n_train > 0 and sum(parts.values()) == len(blob)
        said = (message.ranks,)
    elif which == 5:
        introduction, parts = decode_introduction(blob, codec, SCHEMA, RECORDS)
        found, whole = {}, introduction.n_train > 0 and sum(parts.values()) == len(blob)
        said = (introduction.grouping,)
    elif which == 4:
        scored, parts = decode_evaluation(blob, codec, SCHEMA, TEMPLATE, DEFAULTS)
        ranks = list(scored.ranks.values()) == [2, 2] or min(scored.ranks.values()) == 1
        tallies = [
            tally for own in scored.scores.values() for name, tally in own.metrics.items() if name != "perplexity"
        ]
        return ranks and all(t.sum <= t.count for t in tallies) and sum(parts.values()) == len(blob)
    elif which > 5:
        return fits_secret(blob, codec, which)
    else:
        told = decode_broadcast(blob, codec, SCHEMA, RECORDS)
        memory = ClientState("site", version=2, known=normal(1))
        if which == 2:  # it has trained on version 0, and been alone in that turn
            memory = ClientState("site", sent=relay([(12, codec.encode(normal(2), TEMPLATE, 1))]))
        memory = receive(told, memory, partial(changed, codec), TEMPLATE, START)
        found, whole, said = memory.known, memory.version >= 0, (told.grouping, told.ranks)
    vectors = [getattr(record, f.name) for record in said if record is not None for f in fields(record)]
    whole = whole and all(t is None or bool(t.isfinite().all()) for t in vectors)
    return whole and all(t.shape == SHAPES[name] and bool(t.isfinite().all()) for name, t in found.items())


def fits_secret(blob: bytes, codec: Codec, which: int) -> bool:
    """Message number ``which`` of ``valid``, one of ``secret``."""
    if which == 6:
        offered, parts = decode_offered(blob, codec, SCHEMA)
        fits = len(offered.offer.key) == KEY and len(offered.offer.box) in (0, KEY)
    elif which == 7:
        masked, parts = decode_masked(blob, codec, SCHEMA, TOTALS)
        fits = len(masked.whole.values) == TOTALS.n_values and int(masked.whole.values.max()) < 2**TOTALS.width
    elif which == 8:
        opened, parts = decode_opened(blob, codec, SCHEMA, OTHERS)
        fits = set(opened.secrets) == set(OTHERS) and all(len(one) == KEY for one in opened.secrets.values())
    elif which == 9:
        dealt, parts = decode_dealt(blob, codec, SCHEMA, len(OTHERS))
        fits = len(dealt.shares) == len(OTHERS)
    else:
        _, parts = decode_done(blob, codec, SCHEMA)
        fits = True
    return fits and sum(parts.values()) == len(blob)


def changed(codec: Codec, version: Adapter, difference: bytes, number: int) -> Adapter:
    if is_relayed(difference):
        mean = algebra.Mean()
        for weight, body in relayed(difference):
            mean.add(codec.decode(body, TEMPLATE, number), weight)
        return algebra.add(version, mean.value())
    return algebra.add(version, codec.decode(memoryview(difference), TEMPLATE, number))
