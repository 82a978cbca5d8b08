"""Speed and size of the codecs on an adapter of 2.3 million parameters, on one core.

    python benchmarks/codec.py [--repeats 5] [--seed 0]
    python benchmarks/codec.py --scale [--elements 0.5 97]

The adapter has the shapes of Llama-3.2-3B with r = 8 on q_proj and v_proj (P = 2,293,760). Its values are Gaussian:
then every position is as likely as any other, which is the hardest case for the position code. Speed is megabytes of
the dense float32 adapter per second of encoding or decoding, the best of the repeats.

The entropy bound is what no code of the message's positions and values can go below. Positions: k of the n elements of
a tensor can be chosen in C(n, k) ways, so they take log2 C(n, k) bits, tensor by tensor; nothing where the receiver
knows them. Values: n times the empirical entropy of their symbols over the message: the sign (ternary), the sign and
the level (8bit to 2bit), or 8 bits a byte (fp32, bf16). Scales are not counted.

With ``--scale``: the same speeds, in seconds of the processor, and the most memory beyond the adapter itself, in bytes
for each of its elements, for adapters of about so many million elements, each codec in a process of its own. 97 million
are r = 64 on all linear layers of Llama-3.2-3B; smaller ones have fewer of its layers, or a lower rank. The first
message of a process draws the random places and sorts them (``first``); all that follow share them.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from capfl.config.schema import CodecConfig
from capfl.types import Adapter
from capfl.wire import Codec, up_codec
from capfl.wire.body import unpack
from capfl.wire.sections import Section
from capfl.wire.values import VALUES, unpack_levels

CODECS = {
    "fp32 dense": Codec(VALUES["fp32"]),
    "bf16 dense": Codec(VALUES["bf16"]),
    "8bit dense": Codec(VALUES["8bit"]),
    "4bit dense": Codec(VALUES["4bit"]),
    "8bit top 15 %": Codec(VALUES["8bit"], 0.15),
    "4bit top 15 %": Codec(VALUES["4bit"], 0.15),
    "ternary top 15 %": Codec(VALUES["ternary"], 0.15),
    "ternary top 5 %": Codec(VALUES["ternary"], 0.05),
    "ternary top 1 %": Codec(VALUES["ternary"], 0.01),
    "default": up_codec(CodecConfig(), 0),
}


def llama_adapter(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    adapter: Adapter = {}
    for layer in range(28):
        for name, d_out in (("q_proj", 3072), ("v_proj", 1024)):
            adapter[f"{layer}.{name}.A"] = torch.randn(8, 3072, generator=generator)
            adapter[f"{layer}.{name}.B"] = torch.randn(d_out, 8, generator=generator)
    return adapter


def bits(body: bytes, codec: Codec, template: Adapter, round: int) -> float:
    """Bits that the body of a message of a round says."""
    layout, found = unpack(memoryview(body), template)
    arrived = codec.decode(memoryview(body), template, round)
    reach = codec.reach(arrived, template, round)
    numbers = [int(t.count_nonzero()) for t in (arrived if Section.POSITIONS in found else reach).values()]
    said, data, n = 0.0, found[Section.VALUES], sum(numbers)
    if Section.POSITIONS in found:
        said += sum(log2_choose(int(size), k) for size, k in zip(layout.sizes, numbers, strict=True))
    if codec.values.name in ("fp32", "bf16"):
        return said + 8.0 * len(data)
    n_signs = (n + 7) // 8
    symbols = np.unpackbits(np.frombuffer(data[:n_signs], np.uint8))[:n].astype(np.int64)
    if codec.values.name != "ternary":
        symbols += 2 * unpack_levels(data[n_signs:], n, int(codec.values.name.removesuffix("bit")) - 1)
    _, counts = np.unique(symbols, return_counts=True)
    return said - float((counts * np.log2(counts / n)).sum())


def log2_choose(n: int, k: int) -> float:
    """log2 of the number of ways to choose k of n."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


# -- by the number of elements ---------------------------------------------------------------------------

LINEAR = (
    ("q", 3072, 3072), ("k", 3072, 1024), ("v", 3072, 1024), ("o", 3072, 3072), ("gate", 3072, 8192),
    ("up", 3072, 8192), ("down", 8192, 3072),
)  # fmt: skip
A_LAYER = sum(d_in + d_out for _, d_in, d_out in LINEAR)  # elements of rank 1
AT_SCALE = ("fp32 dense", "8bit dense", "4bit top 15 %", "ternary top 5 %", "default", "default by rank")


def linear_adapter(millions: float) -> Adapter:
    """An adapter of all linear layers, with about so many elements."""
    rank = 64 if millions * 1e6 >= 64 * A_LAYER else max(1, round(millions * 1e6 / A_LAYER))
    layers = max(1, round(millions * 1e6 / A_LAYER / rank))
    generator = torch.Generator().manual_seed(0)
    adapter: Adapter = {}
    for layer in range(layers):
        for name, d_in, d_out in LINEAR:
            adapter[f"{layer}.{name}.A"] = torch.randn(rank, d_in, generator=generator)
            adapter[f"{layer}.{name}.B"] = torch.randn(d_out, rank, generator=generator)
    return adapter


def measured(name: str, millions: float) -> dict[str, float]:
    """One codec at one size: speed in MB of dense float32 a second of the processor, memory in bytes an element."""
    adapter = linear_adapter(millions)
    n = sum(t.numel() for t in adapter.values())
    codec = CODECS[name.removesuffix(" by rank")]
    n_ranks = sum(len(t) for key, t in adapter.items() if key.endswith(".A"))
    importance = np.linspace(1, 2, n_ranks) if name.endswith("by rank") else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def seconds(action: Callable[[], T]) -> tuple[T, float]:
        began = time.process_time()
        return action(), time.process_time() - began

    body, first = seconds(lambda: codec.encode(adapter, adapter, 1, importance))
    repeats = max(1, round(4e6 / n))
    encoding = min(seconds(lambda: codec.encode(adapter, adapter, 2, importance))[1] for _ in range(repeats))
    after_encoding = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoding = min(seconds(lambda: codec.decode(memoryview(body), adapter, 1))[1] for _ in range(repeats))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mb = 4e-6 * n
    return {
        "millions": n / 1e6, "bytes": len(body), "first": first, "encode_mb_s": mb / encoding,
        "decode_mb_s": mb / decoding, "encode_bytes_an_element": 1024 * (after_encoding - peak) / n,
        "bytes_an_element": 1024 * (after - peak) / n,
    }  # fmt: skip


def scale(sizes: list[float], names: list[str]) -> None:
    """A table of codecs by sizes."""
    print("| codec | million elements | bytes | first, s | encode, MB/s | decode, MB/s | memory, bytes an element: "
          "encode | both |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in names:
        for millions in sizes:
            words = [sys.executable, __file__, "--child", name, str(millions)]
            row = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(f"| {name} | {row['millions']:.2f} | {row['bytes']:,} | {row['first']:.2f} | "
                  f"{row['encode_mb_s']:.0f} | {row['decode_mb_s']:.0f} | {row['encode_bytes_an_element']:.1f} | "
                  f"{row['bytes_an_element']:.1f} |", flush=True)  # fmt: skip


T = TypeVar("T")


def best(action: Callable[[], T], repeats: int) -> tuple[T, float]:
    """What the action gives, and the shortest time that it took, in seconds."""
    result, times = action(), []
    for _ in range(repeats):
        began = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - began)
    return result, min(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--elements", type=float, nargs="+", default=[0.5, 97], metavar="MILLIONS")
    parser.add_argument("--codecs", nargs="+", default=list(AT_SCALE), choices=AT_SCALE, metavar="CODEC")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        print(json.dumps(measured(options.child[0], float(options.child[1]))))
        return
    if options.scale:
        scale(options.elements, options.codecs)
        return
    adapter = llama_adapter(options.seed)
    dense = 4e-6 * sum(t.numel() for t in adapter.values())
    rows = []
    for name, codec in CODECS.items():
        body, encoding = best(lambda codec=codec: codec.encode(adapter, adapter, 1), options.repeats)
        _, decoding = best(lambda codec=codec, body=body: codec.decode(memoryview(body), adapter, 1), options.repeats)
        bound = bits(body, codec, adapter, 1) / 8
        rows.append({
            "codec": name, "bytes": len(body), "over_entropy": len(body) / bound,
            "encode_mb_s": dense / encoding, "decode_mb_s": dense / decoding,
        })  # fmt: skip
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print("| codec | bytes | over the entropy bound | encode, MB/s | decode, MB/s |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['codec']} | {row['bytes']:,} | {100 * (row['over_entropy'] - 1):+.2f} % | "
              f"{row['encode_mb_s']:.0f} | {row['decode_mb_s']:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
