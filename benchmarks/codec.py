"""Speed and size of the codecs on an adapter of 2.3 million parameters, on one core.

    python benchmarks/codec.py [--repeats 5] [--seed 0]

The adapter has the shapes of Llama-3.2-3B with r = 8 on q_proj and v_proj (P = 2,293,760). Its values are Gaussian:
then every position is as likely as any other, which is the hardest case for the position code. Speed is megabytes of
the dense float32 adapter per second of encoding or decoding, the best of the repeats; the entropy bound is what
``capfl.wire.entropy`` says of the very message.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from capfl.config.schema import CodecConfig
from capfl.types import Adapter
from capfl.wire import Codec, up_codec
from capfl.wire.entropy import bits
from capfl.wire.values import VALUES

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
    options = parser.parse_args()
    torch.set_num_threads(1)
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
