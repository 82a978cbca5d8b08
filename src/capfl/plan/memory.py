"""Peak memory of a run, from shapes: an estimate, not a measurement.

With P the elements of the adapter, in bytes, on host and device together::

    base         elements of the base in its dtype; linear layers of the decoder at 1 or 1/2 byte if quantised
    training     16 P                     factors, gradient and the two moments of Adam, in fp32
    activations  tokens * layers * (d * sum of max(d_in, d_out) over a layer's linear layers
                                    + 8 * hidden + (0 or 4 * sum of d_in over its targets))
                 + 12 * answers * vocabulary;
                 with train.checkpointing tokens * (layers * d * hidden + 1.5 * what one layer keeps) in its place;
                 or, if that is more, what one layer takes of the rows that are scored at once, with
                 8 * answers * vocabulary, or of the BLOCK rows that the layers below the adapted ones see at once
    hidden states  tokens of all rows * hidden * d, at most runtime.cache_gib, if the cache is in memory
    client       8 P (where it starts, where it ends) + 8 P if messages lose something (version known, residual)
    server       24 P (adapter, version known, sum and addend in double precision) + the log of differences
    patch        all adapted weights in fp32, PATCHES times, for a method that changes the base
    process      what this process takes with the same libraries loaded and no model

``tokens`` are batch_size / accumulate * length, ``layers`` those from the lowest adapted one up, ``d`` the bytes of an
element of the base. What a layer keeps for the backward pass are outputs of linear layers and inputs of products, each
about as wide as the wider side of a linear layer; two norms, in fp32; and, on a base in half precision, copies in fp32
for the factors. ``answers`` are the positions of a row with logits. Without a look at the data, rows are taken to be as
long as ``data.max_length`` allows, and answers to be one token by letter and the whole row otherwise: more than most
are. Attention is taken to be fused: its matrix of tokens by tokens is not kept. What allocator and libraries keep for
themselves is not in the estimate: runs on a CPU peaked 10 to 30 % above it, for which ``plan.advice`` leaves room.
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any, cast

from torch import nn

from capfl.config.schema import Config
from capfl.model.hidden import BLOCK
from capfl.model.layers import Shapes, chosen_layers, decoder_layers, linear_layers

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PATCHES = 8  # server's; a client's from its file, the next and what it adds; in the weights; and on its way to disk
QUANTISED = {"8bit": 1.0, "4bit": 0.5}


def estimate(
    config: Config, module: nn.Module, shapes: Shapes, *, length: int, answers: int, rows: int | None, lossy: bool,
    log: int, process: int, patched: bool = False,
) -> dict[str, int]:  # fmt: skip
    """Bytes by what they are for, and their ``total``.

    Args:
        module: the base, on any device.
        length: tokens of the longest row.
        answers: tokens of the longest answer.
        rows: rows of all clients; None if they are not known, and the cache is then taken to be full.
        lossy: do messages lose anything, so that residuals and versions are kept?
        log: bytes of the differences that the server keeps.
        process: bytes that the process takes without any model.
        patched: does the method change the base?
    """
    size = BYTES[config.model.dtype]
    layers = decoder_layers(module)
    lowest = min(chosen_layers(config.lora.layers, len(layers)))
    vocabulary, hidden = cast(Any, module).get_input_embeddings().weight.shape
    adapter = 4 * sum(prod(shape) for shape in shapes.values())
    patch = sum(4 * shape[1] * shapes[f"{name[:-2]}.B"][0] for name, shape in shapes.items() if name.endswith(".A"))
    of_layers = [_kept(layer, config, size, hidden) for layer in layers[lowest:]]
    kept = size * hidden * len(of_layers) + 1.5 * max(of_layers) if config.train.checkpointing else sum(of_layers)
    rows_of_a_part = ceil(config.train.batch_size / config.train.accumulate)
    training = int(rows_of_a_part * (length * kept + 12 * answers * vocabulary))
    of_one = length * _kept(layers[0], config, size, hidden)
    scoring = config.evaluation.batch_size * (of_one + 8 * answers * vocabulary)
    below = BLOCK * of_one if lowest else 0
    cached = int(config.runtime.cache_gib * 2**30)
    if rows is not None:
        cached = min(cached, rows * length * hidden * size)
    found = {
        "base": _base(module, layers, config),
        "training": 4 * adapter,
        "activations": max(training, scoring, below),
        "hidden states": cached if lowest and config.runtime.cache == "memory" else 0,
        "client": (4 if lossy else 2) * adapter,
        "server": 6 * adapter + log,
        "patch": PATCHES * patch if patched else 0,
        "process": process,
    }
    return found | {"total": sum(found.values())}


def _kept(layer: nn.Module, config: Config, size: int, hidden: int) -> int:
    """Bytes that one layer keeps of one token for the backward pass."""
    linear = linear_layers(layer)
    copies = sum(d_in for name, (d_in, _) in linear.items() if name.rpartition(".")[2] in config.lora.targets)
    return size * sum(map(max, linear.values())) + 8 * hidden + (4 * copies if size < 4 else 0)


def _base(module: nn.Module, layers: nn.ModuleList, config: Config) -> int:
    size = BYTES[config.model.dtype]
    elements = sum(p.numel() for p in module.parameters())
    if config.model.quantization == "none":
        return size * elements
    linear = sum(prod(shape) for layer in layers for shape in linear_layers(layer).values())
    return size * (elements - linear) + int(QUANTISED[config.model.quantization] * linear)
