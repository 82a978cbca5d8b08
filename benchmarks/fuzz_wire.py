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
from dataclasses import dataclass, field
from pathlib import Path

import torch

from capfl.errors import WireError
from capfl.machine import peak_memory
from fuzz_messages import CODECS, decode, valid

MOST_SECONDS, MOST_MIB = 1.0, 64.0
CHUNK = 5000  # messages that a process is handed at once

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
