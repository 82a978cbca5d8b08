"""A million messages that are not what they should be: each is refused with WireError or decodes to what fits.

    python benchmarks/fuzz_wire.py [--messages 1000000] [--seed 0] [--processes 2] [--json FILE]

Valid updates, broadcasts (of one difference, of three of which one is relayed and one the client's own, of the whole
adapter), evaluations, introductions and the five messages of secure aggregation, of every values kind, dense, the
largest of each tensor, under a random mask, and drawn by the importance of ranks, are damaged in one of these ways:

``bytes``    one to eight bytes changed, removed or put in, anywhere
``values``   one to eight bytes behind the header changed, so that every length stays right
``numbers``  four bytes replaced by a number that a length or a count should not be
``cut``      the end is missing
``longer``   something stands behind the end
``splice``   the beginning of one message and the end of another
``random``   bytes from nowhere, behind a right header half of the time

Half of them get a checksum that fits, so that what lies behind it is reached. Every message goes all the way: an
update into an adapter, a broadcast into a client's memory. The table says which module refused how many. Exits with 1
if anything but WireError is raised, if what is decoded does not fit, if a decode takes more than a second of processor
time, or if a process grows by more than 64 MiB. tests/unit/wire/test_fuzz.py tries a few thousand.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import sys
import time
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from capfl import adapter as algebra
from capfl.errors import WireError
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
from capfl.usage import peak_memory
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

MOST_SECONDS, MOST_MIB = 1.0, 64.0
CHUNK = 5000  # messages that a process is handed at once

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
NUMBERS = [0, 1, 2, 255, 2**15, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
PLACES = (
    "header",
    "message",
    "sections",
    "records",
    "body",
    "codec",
    "layout",
    "budget",
    "positions",
    "rice",
    "scales",
    "values",
    "downlink",
    "scores",
    "secure",
)


@dataclass
class Found:
    """What became of some messages."""

    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  # by damage and the module that noticed it
    decoded: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds of processor time
    grown_mib: float = 0.0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.refused += other.refused
        self.decoded += other.decoded
        self.slowest = max(self.slowest, other.slowest)
        self.grown_mib = max(self.grown_mib, other.grown_mib)
        self.violations += other.violations


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


# -- damage ------------------------------------------------------------------------------------------------


def bytes_(blob: bytearray, codec: int, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(blob))
        blob[at : at + rng.choice((0, 1, 1, 1, 2))] = rng.randbytes(rng.choice((0, 1, 1, 1, 2)))
    return blob


def values(blob: bytearray, codec: int, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        blob[rng.randrange(min(42, len(blob) - 1), len(blob))] ^= rng.choice((1, 2, 128, rng.randrange(256)))
    return blob


def numbers(blob: bytearray, codec: int, rng: random.Random) -> bytearray:
    at = rng.randrange(len(blob) - 4)
    number = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randrange(2 * len(blob))
    blob[at : at + 4] = struct.pack("<I", number)
    return blob


def cut(blob: bytearray, codec: int, rng: random.Random) -> bytearray:
    return blob[: rng.randrange(len(blob))]


def longer(blob: bytearray, codec: int, rng: random.Random) -> bytearray:
    return blob + rng.randbytes(rng.choice((1, 2, 5, 100)))


def splice(blob: bytearray, codec: int, rng: random.Random) -> bytearray:
    other = rng.choice(valid(rng.choice((codec, rng.randrange(len(CODECS))))))
    return blob[: rng.randrange(len(blob))] + other[rng.randrange(len(other)) :]


def random_(blob: bytearray, codec: int, rng: random.Random) -> bytearray:
    made = rng.randbytes(rng.randrange(300))
    return blob[:42] + made if rng.random() < 0.5 else bytearray(made)


DAMAGE = {
    "bytes": bytes_,
    "values": values,
    "numbers": numbers,
    "cut": cut,
    "longer": longer,
    "splice": splice,
    "random": random_,
}


# -- decoding ----------------------------------------------------------------------------------------------


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


def noticed(error: BaseException) -> str:
    """The module that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename).stem if trace else "?"


def peak_mib() -> float:
    return peak_memory() / 2**20


def chunk(seed: int, number: int, n_messages: int) -> Found:
    torch.set_num_threads(1)
    for codec in range(len(CODECS)):  # so that growth is that of decoding alone
        for n, blob in enumerate(valid(codec)):
            assert decode(blob, CODECS[codec], n)
    rng, found, before = random.Random(f"{seed}/{number}"), Found(), peak_mib()
    for _ in range(n_messages):
        codec, damage = rng.randrange(len(CODECS)), rng.choice(list(DAMAGE))
        which = rng.randrange(len(valid(codec)))
        blob = bytes(DAMAGE[damage](bytearray(valid(codec)[which]), codec, rng))
        if rng.random() < 0.5:
            blob = blob[:-4] + struct.pack("<I", zlib.crc32(blob[:-4]))
        began = time.thread_time()
        try:
            fits = decode(blob, CODECS[codec], which)
        except WireError as error:
            found.refused[damage, noticed(error)] += 1
        except Exception as error:  # this is what must not happen
            found.violations.append(f"{type(error).__name__}: {error}; codec {codec}, message {which}: {blob.hex()}")
        else:
            found.decoded[damage] += 1
            if not fits:
                found.violations.append(f"does not fit; codec {codec}, message {which}: {blob.hex()}")
        found.slowest = max(found.slowest, time.thread_time() - began)
    found.grown_mib = peak_mib() - before
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began, found = time.monotonic(), Found()
    sizes = [min(CHUNK, options.messages - first) for first in range(0, options.messages, CHUNK)]
    with ProcessPoolExecutor(options.processes) as pool:
        for part in pool.map(chunk, [options.seed] * len(sizes), range(len(sizes)), sizes):
            found.add(part)
    seconds = time.monotonic() - began

    print(
        "| damage | messages | decoded | refused by "
        + " | ".join(PLACES)
        + " |\n|---"
        + "|---" * (2 + len(PLACES))
        + "|"
    )
    for damage in DAMAGE:
        refused = [found.refused[damage, place] for place in PLACES]
        n_messages = found.decoded[damage] + sum(n for (d, _), n in found.refused.items() if d == damage)
        cells = [n_messages, found.decoded[damage], *refused]
        print(f"| {damage} | " + " | ".join(f"{n:,}" for n in cells) + " |")
    print(f"\n{options.messages:,} messages in {seconds:.0f} s on {options.processes} processes; slowest decode "
          f"{1000 * found.slowest:.1f} ms; largest growth of a process {found.grown_mib:.1f} MiB; "
          f"{len(found.violations)} violations")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({
            "messages": options.messages, "seed": options.seed, "decoded": sum(found.decoded.values()),
            "refused": sum(found.refused.values()), "violations": len(found.violations),
            "slowest_seconds": found.slowest, "grown_mib": found.grown_mib, "seconds": seconds,
        }, indent=1) + "\n")  # fmt: skip
    for violation in found.violations[:10]:
        print(violation, file=sys.stderr)
    if found.slowest > MOST_SECONDS:
        print(f"a decode took {found.slowest:.2f} s, at most {MOST_SECONDS} are allowed", file=sys.stderr)
    if found.grown_mib > MOST_MIB:
        print(f"a process grew by {found.grown_mib:.0f} MiB, at most {MOST_MIB} are allowed", file=sys.stderr)
    sys.exit(bool(found.violations) or found.slowest > MOST_SECONDS or found.grown_mib > MOST_MIB)


if __name__ == "__main__":
    main()
