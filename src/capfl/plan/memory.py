"""Peak memory of a run, from shapes: an estimate, not a measurement; and the settings with which a run fits.

With P the elements of the adapter, in bytes, on host and device together::

    base         elements of the base in its dtype; linear layers of the decoder at 1 or 1/2 byte if quantised
    training     16 P                     factors, gradient and the two moments of Adam, in fp32; where items are
                                          protected 12 P more for each row of a part (its copy, the product's, and
                                          its gradient) and 16 P (sum and noise, in double precision)
    activations  tokens * layers * (d * sum of max(d_in, d_out) over a layer's linear layers
                                    + 8 * hidden + (0 or 4 * sum of d_in over its targets))
                 + 12 * vocabulary * answers, of as many as are computed at once (``model.parts``);
                 with train.checkpointing tokens * (layers * d * hidden + 1.5 * what one layer keeps) in its place;
                 or, if that is more, what one layer takes of the rows that are scored at once, with
                 8 * vocabulary * answers, as above, or of the BLOCK rows that the layers below the adapted ones see at
                 once, or of the rows whose answers are written at once, with their keys and values
                 (all layers * 2 * width of the keys * d for each token of a row and its answer)
    hidden states  tokens of all rows * hidden * d, at most runtime.cache_gib, if the cache is in memory
    client       8 P (where it starts, where it ends) + 8 P if messages lose something (version known, residual)
    server       24 P (adapter, version known, sum and addend in double precision) + 4 P if messages lose something:
                 differences are kept while they are shorter than the adapter
    patch        all adapted weights in fp32, PATCHES times, for a method that changes the base
    process      what this process takes with the same libraries loaded and no model
    workers      with several, WORKER for each of them, beside training, activations and client for each

``training``, ``client`` and the rows of a step are those of runtime.clients_per_pass clients.
``tokens`` are batch_size / accumulate * length, ``layers`` those from the lowest adapted one up, ``d`` the bytes of an
element of the base. What a layer keeps for the backward pass are outputs of linear layers and inputs of products, each
about as wide as the wider side of a linear layer; two norms, in fp32; and, on a base in half precision, copies in fp32
for the factors. ``answers`` are the positions of a row with logits. Without a look at the data, rows are taken to be as
long as ``data.max_length`` allows, and answers to be one token by letter and the whole row otherwise: more than most
are. Attention is taken to be fused: its matrix of tokens by tokens is not kept. What allocator and libraries keep for
themselves is not in the estimate: runs on a CPU peaked 10 to 50 % above it (most with LoRA on all layers and long
texts), for which ``advise`` leaves room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any, cast

import torch
from torch import nn

from capfl.config.load import changed
from capfl.config.runtime import MEMORY
from capfl.config.schema import Config
from capfl.errors import ConfigError
from capfl.machine import total_memory
from capfl.model.base import pick_device
from capfl.model.hidden import BLOCK
from capfl.model.layers import Shapes, decoder_layers, fits, linear_layers, lowest_layer
from capfl.model.parts import at_once
from capfl.report.tables import size

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WORKER = 32 * 2**20  # bytes of its own that a fork has once it has worked; 28 MiB were measured
EACH = ("training", "activations", "client", "workers")  # of the parts of the estimate: what each worker has of its own
PATCHES = 8  # server's; a client's from its file, the next and what it adds; in the weights; and on its way to disk
QUANTISED = {"8bit": 1.0, "4bit": 0.5}
ON_DEVICE = ("base", "training", "activations")  # what is on an accelerator, of the parts of the estimate
ABOVE = 1.5  # runs have peaked at so many times the estimate, at most


def estimate(
    config: Config, module: nn.Module, shapes: Shapes, *, length: int, answers: int, written: int, rows: int | None,
    lossy: bool, patched: bool, process: int,
) -> dict[str, int]:  # fmt: skip
    """Bytes by what they are for, and their ``total``.

    Args:
        module: the base, on any device.
        length: tokens of the longest row.
        answers: tokens of the longest answer.
        written: tokens of an answer that a model writes, at most; 0 if none is written.
        rows: rows of all clients; None if they are not known, and the cache is then taken to be full.
        lossy: do messages lose anything, so that residuals and versions are kept?
        patched: does the method change the base?
        process: bytes that the process takes without any model.
    """
    element = BYTES[config.model.dtype]
    layers = decoder_layers(module)
    lowest = lowest_layer(module, shapes)
    vocabulary, hidden = cast(Any, module).get_input_embeddings().weight.shape
    most = at_once(vocabulary)
    adapter = 4 * sum(prod(shape) for shape in shapes.values())
    patch = sum(4 * shape[1] * shapes[f"{name[:-2]}.B"][0] for name, shape in shapes.items() if name.endswith(".A"))
    of_layers = [_kept(layer, config, element, hidden) for layer in layers[lowest:]]
    kept = element * hidden * len(of_layers) + 1.5 * max(of_layers) if config.train.checkpointing else sum(of_layers)
    rows_of_a_part = ceil(config.train.batch_size / config.train.accumulate)
    clients = config.runtime.clients_per_pass
    trained = clients * rows_of_a_part
    copies = 3 * rows_of_a_part + 4 if config.privacy.of_items else 0
    training = int(trained * length * kept) + 12 * vocabulary * min(trained * answers, most)
    of_one = length * _kept(layers[0], config, element, hidden)
    scored = config.evaluation.batch_size
    scoring = scored * of_one + 8 * vocabulary * min(scored * answers, most)
    below = BLOCK * of_one if lowest else 0
    keys = element * len(layers) * 2 * _key_width(module)
    writing = scored * (of_one + (length + written) * keys + 8 * vocabulary) if written else 0
    cached = int(config.runtime.cache_gib * 2**30)
    if rows is not None:
        cached = min(cached, rows * length * hidden * element)
    n = config.runtime.workers
    found = {
        "base": _base(module, layers, config, element),
        "training": n * (4 + copies) * adapter * clients,
        "activations": n * max(training, scoring, below, writing),
        "hidden states": cached if lowest and config.runtime.cache == MEMORY else 0,
        "client": n * (4 if lossy else 2) * adapter * clients,
        "server": (7 if lossy else 6) * adapter,
        "patch": PATCHES * patch if patched else 0,
        "process": process,
        "workers": n * WORKER if n > 1 else 0,
    }
    return found | {"total": sum(found.values())}


def of_a_worker(found: Mapping[str, int], workers: int) -> int | None:
    """Bytes that each of several workers has of its own, of what ``estimate`` gives; None: there is one process."""
    return sum(found[name] for name in EACH) // workers if workers > 1 else None


def _kept(layer: nn.Module, config: Config, element: int, hidden: int) -> int:
    """Bytes that one layer keeps of one token for the backward pass."""
    linear = linear_layers(layer)
    copies = sum(d_in for name, (d_in, _) in linear.items() if any(fits(name, t) for t in config.lora.targets))
    return element * sum(map(max, linear.values())) + 8 * hidden + (4 * copies if element < 4 else 0)


def _key_width(module: nn.Module) -> int:
    """Elements of a token's key in the widest layer; its value has as many. 0 for a model without attention."""
    config = cast(Any, module).config.get_text_config()
    heads = _most(getattr(config, "num_attention_heads", None) or 0)
    of_head = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    return _most(getattr(config, "num_key_value_heads", None) or heads) * int(of_head)


def _most(of_layers: int | list[int]) -> int:
    """Some configs say it for each layer."""
    return int(max(of_layers) if isinstance(of_layers, list) else of_layers)


def _base(module: nn.Module, layers: nn.ModuleList, config: Config, element: int) -> int:
    elements = sum(p.numel() for p in module.parameters())
    if config.model.quantization == "none":
        return element * elements
    linear = sum(prod(shape) for layer in layers for shape in linear_layers(layer).values())
    return element * (elements - linear) + int(QUANTISED[config.model.quantization] * linear)


# -- advice ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Advice:
    """What to do about memory.

    Attributes:
        room: bytes that there are; None if that is not known, as for a device that this machine does not have.
        settings: by their keys, those to change so that the run fits, or takes least if nothing is enough.
        bytes: what the run then takes, by the estimate.
        fits: does it fit, with these settings?
    """

    room: int | None
    settings: Mapping[str, object]
    bytes: int
    fits: bool

    def __str__(self) -> str:
        if self.room is None or (self.fits and not self.settings):
            return ""
        problem = f"does not fit into {size(self.room)} with {ABOVE - 1:.0%} to spare"
        changes = " ".join(f"--{key} {str(value).lower()}" for key, value in self.settings.items())
        if self.fits:
            return f"{problem}; it does, with {size(self.bytes)}, if you add: {changes}"
        least = f" even with {changes}, which takes {size(self.bytes)}" if changes else ""
        return f"{problem}{least}; take a smaller model, fewer lora.layers or a smaller data.max_length"


def advise(config: Config, estimated: Callable[[Config], Mapping[str, int]], room: int | None = None) -> Advice:
    """Does a run fit into memory, and if not, with which settings does it?

    Settings are tried in the order of what they cost: fewer rows scored at once and a step in more parts, which change
    no result; one client in a pass, which changes rounding; checkpointing and fewer workers, which take time; and last
    a base in half precision.

    Args:
        estimated: what ``estimate`` gives for a config.
        room: bytes that there are; by default what this machine has, or its accelerator if the run is on one.
    """
    try:
        device = pick_device(config.model.device).type
    except ConfigError:  # a device of another machine
        return Advice(None, {}, 0, fits=True)
    if room is None:
        on_gpu = device == "cuda"
        room = torch.cuda.get_device_properties(0).total_memory if on_gpu else total_memory()
    least: Advice | None = None
    for settings in _settings(config):
        found = estimated(changed(config, settings))
        needed = sum(found[name] for name in ON_DEVICE) if device == "cuda" else found["total"]
        advice = Advice(room, settings, needed, fits=ABOVE * needed <= room)
        if advice.fits:
            return advice
        if least is None or advice.bytes < least.bytes:
            least = advice
    assert least is not None
    return least


def _settings(config: Config) -> Iterator[dict[str, object]]:
    """No change, and then every change that takes less memory, those that cost least first."""
    model, train, evaluation, workers = config.model, config.train, config.evaluation, config.runtime.workers
    passes = config.runtime.clients_per_pass
    choices: dict[str, list[object]] = {
        "model.dtype": [model.dtype, "bfloat16"] if model.dtype == "float32" else [model.dtype],
        "runtime.workers": [workers // 2**n for n in range(9) if workers >= 2**n],
        "train.checkpointing": [False, True] if not train.checkpointing else [True],
        "runtime.clients_per_pass": [passes, 1] if passes > 1 else [1],
        "train.accumulate": [train.accumulate * 2**n for n in range(9) if train.accumulate * 2**n <= train.batch_size],
        "evaluation.batch_size": [evaluation.batch_size // 2**n for n in range(9) if evaluation.batch_size >= 2**n],
    }
    for values in product(*choices.values()):
        yield {key: value for (key, own), value in zip(choices.items(), values, strict=True) if value != own[0]}
